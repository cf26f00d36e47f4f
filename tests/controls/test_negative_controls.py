"""Each safety line, taken out of a copy of the source: the test that guards it must fail then.

Slow: run it with `pytest -m slow tests/controls`. docs/semantics.md has the same list, by promise.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import modelstore
from tests.controls.lines import CONTROLS, Control
from tests.controls.source_lines import SOURCE_CONTROLS

SOURCE = Path(modelstore.__file__).parent
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("control", [*CONTROLS, *SOURCE_CONTROLS], ids=lambda control: control.promise)
def test_the_loss_of_a_safety_line_is_noticed(control: Control, tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "src" / "modelstore", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "src" / "modelstore" / control.file
    text = file.read_text()
    assert text.count(control.old) == 1, "the line has changed: bring this list up to date"
    file.write_text(text.replace(control.old, control.new))
    where, _, which = control.test.partition(" -k ")
    select = ["-k", which.strip("'")] if which else []
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *where.split(), *select]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, f"{control.test} passes without it:\n{done.stdout[-2000:]}"
