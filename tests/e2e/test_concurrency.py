"""Many processes, one cold URL: one download. With locks that lie, a killed process, a power cut: the right bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.support import Modelstore, blob, count, digests, finish, marked, staged, visible, wait_until, writable
from tests.support.httpserver import HttpServer, PatternBody

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

Start = Callable[..., "subprocess.Popen[str]"]
MIB = 1 << 20
PROCESSES = 8


@pytest.mark.parametrize("lie", [False, True], ids=["lock", "lock that lies"])
def test_eight_processes_at_once(
    cli: Modelstore, http_server: HttpServer, start: Start, store_root: Path, tmp_path: Path, lie: bool
) -> None:
    """The origin holds its body back until all eight have come to the lock, so none of them finds the work done."""
    origin = http_server.add("/m.gguf", PatternBody(256 * MIB), pause_at=0)
    command = marked(cli, tmp_path / "marks", lie=lie)
    running = [start(command, "fetch", origin.url) for _ in range(PROCESSES)]
    wait_until(lambda: count(tmp_path / "marks") == PROCESSES, *running)
    origin.resume.set()
    paths = {finish(process, 100).path for process in running}
    assert len(paths) == 1
    assert digests(paths.pop()) == {"m.gguf": origin.body.sha256}
    assert staged(store_root) == []
    if lie:
        assert http_server.bytes_sent >= 2 * origin.body.size, "several downloads at once: the lock did lie"
    else:
        assert http_server.bytes_sent <= origin.body.size + 16 * 1024, "1.0x, and a few probes"


def test_kill_in_the_middle_then_the_next_just_works(
    cli: Modelstore, http_server: HttpServer, start: Start, store_root: Path
) -> None:
    origin = http_server.add("/m.gguf", PatternBody(64 * MIB), pause_at=40 * MIB)
    victim = start(cli, "fetch", origin.url)
    wait_until(origin.paused.is_set, victim)
    victim.kill()
    victim.wait(10)
    origin.resume.set()
    assert visible(store_root) == {}
    assert digests(cli("fetch", origin.url).path) == {"m.gguf": origin.body.sha256}
    cli("verify").ok()


@pytest.mark.parametrize("content", ["", '{"half', "[]"], ids=["empty", "half", "another type"])
@pytest.mark.parametrize("kind", ["refs", "sums", "layouts"])
def test_records_torn_by_a_power_cut(
    cli: Modelstore, sharded_model_dir: Path, store_root: Path, kind: str, content: str
) -> None:
    cli("fetch", sharded_model_dir).ok()
    for record in (store_root / ".modelstore" / kind).iterdir():
        with writable(record):
            record.write_text(content)
    assert digests(cli("fetch", sharded_model_dir).path) == digests(sharded_model_dir)
    cli("list").ok()
    cli("verify").ok()


def test_blob_torn_by_a_power_cut(cli: Modelstore, http_server: HttpServer, store_root: Path) -> None:
    origin = http_server.add("/m.gguf", PatternBody(MIB))
    torn = blob(store_root, origin.body.sha256)
    cli("fetch", origin.url).ok()
    with writable(torn):
        os.truncate(torn, 1000)
    assert digests(cli("fetch", origin.url).path) == {"m.gguf": origin.body.sha256}


def test_who_waits_takes_over_from_who_dies(
    cli: Modelstore, http_server: HttpServer, start: Start, tmp_path: Path
) -> None:
    origin = http_server.add("/m.gguf", PatternBody(32 * MIB), pause_at=20 * MIB)
    victim = start(cli, "fetch", origin.url)
    wait_until(origin.paused.is_set, victim)
    waiting = start(marked(cli, tmp_path / "marks"), "fetch", origin.url)
    wait_until(lambda: count(tmp_path / "marks") == 1, waiting)
    victim.kill()
    victim.wait(10)
    origin.resume.set()
    assert digests(finish(waiting).path) == {"m.gguf": origin.body.sha256}


def test_different_models_at_once(cli: Modelstore, http_server: HttpServer, start: Start) -> None:
    """Half of the bytes are the same blob under two URLs."""
    bodies = [PatternBody(20 * MIB, seed // 2) for seed in range(6)]
    origins = [http_server.add(f"/{number}.gguf", body) for number, body in enumerate(bodies)]
    running = [start(cli, "fetch", origin.url) for origin in origins]
    for number, (process, body) in enumerate(zip(running, bodies, strict=True)):
        assert digests(finish(process).path) == {f"{number}.gguf": body.sha256}
    assert len(cli("list", "--json").json) == 6
    cli("verify").ok()


def test_one_target_for_two_processes(cli: Modelstore, http_server: HttpServer, start: Start, tmp_path: Path) -> None:
    """Two replicas start on one volume and name the same --to."""
    origin = http_server.add("/m.gguf", PatternBody(20 * MIB), pause_at=0)
    target = tmp_path / "serve" / "model"
    target.parent.mkdir()
    running = [start(cli, "fetch", origin.url, "--to", target) for _ in range(4)]
    wait_until(origin.paused.is_set, *running)
    origin.resume.set()
    assert {finish(process).path for process in running} == {target}
    assert digests(target) == {"m.gguf": origin.body.sha256}
    assert os.listdir(target.parent) == ["model"]
