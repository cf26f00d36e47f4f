"""A result that cannot be written is an error, and an error of another kind is not mistaken for it."""

from __future__ import annotations

from pathlib import Path

import pytest

import modelstore.cli
from tests.support import Modelstore, finish


def test_stdout_that_is_full(cli: Modelstore, tiny_model_dir: Path) -> None:
    with Path("/dev/full").open("w") as full:
        result = finish(cli.start("fetch", tiny_model_dir, stdout=full))
    assert result.returncode == 1
    assert [line for line in result.stderr.splitlines() if "error" in line] == [
        "modelstore: error: the result could not be written: No space left on device"
    ]


def test_a_file_that_fails_unforeseen_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/some/file")

    monkeypatch.setattr(modelstore.cli.cli, "main", fail)
    monkeypatch.setattr(modelstore.cli.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as caught:
        modelstore.cli.main()
    assert caught.value.code == 1
    assert "unforeseen FileNotFoundError" in capsys.readouterr().err
