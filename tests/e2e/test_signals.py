"""Ctrl-C and SIGTERM end a fetch within seconds, with the right exit code and nothing visible left."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import Modelstore, count, digests, finish, marked, visible, wait_until
from tests.support.httpserver import HttpServer, PatternBody

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

Start = Callable[..., "subprocess.Popen[str]"]
MIB = 1 << 20
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
# As from a terminal: a suite that runs in the background of a shell would hand down an ignored SIGINT.
DEFAULT_SIGINT = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)


WHERE: dict[str, dict[str, Any]] = {
    "before the headers": {"hang": True},
    "before the first byte": {"pause_at": 0},
    "in the middle": {"pause_at": 20 * MIB},
    "in the middle of one stream": {"pause_at": 20 * MIB, "ranges": False},
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_signal(
    cli: Modelstore, http_server: HttpServer, start: Start, store_root: Path, tmp_path: Path,
    where: str, number: signal.Signals,
) -> None:  # fmt: skip
    origin = http_server.add("/m.gguf", PatternBody(48 * MIB), **WHERE[where])
    target = tmp_path / "serve" / "model"
    target.parent.mkdir()
    terminal = cli.with_prefix(sys.executable, "-SEc", DEFAULT_SIGINT)
    process = start(terminal, "fetch", origin.url, "--to", target)
    wait_until(origin.paused.is_set, process)
    process.send_signal(number)
    result = finish(process, timeout=5)
    assert result.returncode == CODES[number], result
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert visible(store_root) == {}
    assert os.listdir(target.parent) == []
    origin.resume.set()
    assert digests(cli("fetch", origin.url, "--to", target).path) == {"m.gguf": origin.body.sha256}


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_signal_while_another_downloads(
    cli: Modelstore, http_server: HttpServer, start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    """Waiting for the lock ends too, and the download goes on."""
    origin = http_server.add("/m.gguf", PatternBody(48 * MIB), pause_at=20 * MIB)
    first = start(cli, "fetch", origin.url)
    wait_until(origin.paused.is_set, first)
    terminal = cli.with_prefix(sys.executable, "-SEc", DEFAULT_SIGINT)
    second = start(marked(terminal, tmp_path / "marks"), "fetch", origin.url)
    wait_until(lambda: count(tmp_path / "marks") == 1, second)
    second.send_signal(number)
    assert finish(second, timeout=5).returncode == CODES[number]
    origin.resume.set()
    assert digests(finish(first).path) == {"m.gguf": origin.body.sha256}
