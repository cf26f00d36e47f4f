"""A source that hangs can be left, and a file system that bears one thread at a time is asked by one."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from modelstore import Cancelled, Store
from modelstore.transfer import limits
from tests.support import visible
from tests.support.filesystems import AsyncRemoteFileSystem, PlainFileSystem, Remote, assert_model, registered
from tests.support.httpserver import HttpServer, PatternBody, Resource
from tests.support.s3 import environment

MIB = 1 << 20
BIG = b"".join(PatternBody(40 * MIB).read(0, 40 * MIB))
SOON = 10  # seconds: half of what a request may wait for its answer
WAIT = 30


@pytest.fixture
def store(store_root: Path) -> Store:
    return Store([store_root])


# -- cancelled ---------------------------------------------------------------------------------------------------------


def https(server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Resource]:
    hangs = server.add("/m.gguf", b"", hang=True)
    return hangs.url, hangs


def s3(server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Resource]:
    for name, value in environment(server.url, tmp_path).items():
        monkeypatch.setenv(name, value)
    return "s3://bucket/m.gguf", server.add("/bucket/m.gguf", b"", hang=True)


def s3_prefix(server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Resource]:
    s3(server, tmp_path, monkeypatch)
    return "s3://bucket/m/", server.add("/bucket", b"", hang=True)


def registry(server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Resource]:
    return f"ollama://{server.host}:{server.port}/library/tiny", server.add(
        "/v2/library/tiny/manifests/latest", b"", hang=True
    )


@pytest.mark.parametrize("source", [https, s3, s3_prefix, registry], ids=["https", "s3", "s3 prefix", "ollama"])
def test_a_source_that_hangs_can_be_left(
    store: Store,
    store_root: Path,
    http_server: HttpServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: Callable[..., tuple[str, Resource]],
) -> None:
    assert limits.HEADER_SECONDS > SOON
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    url, resource = source(http_server, tmp_path, monkeypatch)
    cancel, cancelled = threading.Event(), [0.0]

    def leave() -> None:
        if resource.paused.wait(WAIT):
            cancelled[0] = time.monotonic()
            cancel.set()

    leaver = threading.Thread(target=leave)
    leaver.start()
    with pytest.raises(Cancelled):
        store.fetch(url, cancel=cancel)
    assert time.monotonic() - cancelled[0] < SOON
    leaver.join()
    assert visible(store_root) == {}


# -- by several threads ------------------------------------------------------------------------------------------------


class Turns:
    """How many ask at once."""

    def __init__(self) -> None:
        self.most = self.calls = 0
        self._now = 0
        self._lock = threading.Lock()
        self.together = threading.Event()

    @contextmanager
    def one(self) -> Iterator[int]:
        """While one asks; the number of this call, from 1."""
        with self._lock:
            self._now += 1
            self.calls += 1
            number = self.calls
            self.most = max(self.most, self._now)
            if self._now > 1:
                self.together.set()
        try:
            yield number
        finally:
            with self._lock:
                self._now -= 1


def plain(turns: Turns) -> type[Any]:
    """Each call gives the other threads a moment to come along; only that they do not come is waited for."""

    class Watched(PlainFileSystem):
        def info(self, path: str, **options: Any) -> dict[str, Any]:
            with turns.one():
                turns.together.wait(0.02)
                return super().info(path, **options)

        def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
            with turns.one():
                turns.together.wait(0.02)
                return super().cat_file(path, start, end, **options)

    return Watched


def asynchronous(turns: Turns) -> type[Any]:
    """No call ends before two have met."""

    class Watched(AsyncRemoteFileSystem):
        async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
            with turns.one():
                deadline = time.monotonic() + WAIT
                while not turns.together.is_set() and time.monotonic() < deadline:
                    await asyncio.sleep(0.005)
                return await super()._cat_file(path, start, end, **options)

    return Watched


def fill(remote: Remote) -> dict[str, bytes]:
    files = {"large": BIG, **{f"{number}.json": b"{}" for number in range(12)}}
    remote.fill(files, "bucket/m/")
    return files


def test_a_plain_file_system_is_asked_by_one_thread_at_a_time(store: Store, store_root: Path) -> None:
    """FTP has one connection for what it is asked, and mixes up the answers."""
    turns = Turns()
    with registered(plain(turns)) as remote:
        files = fill(remote)
        model = store.fetch(remote.url("bucket/m/"), connections=4)
        assert_model(store_root, model, remote.url("bucket/m/"), files)
    assert turns.calls > 40 + len(files)
    assert turns.most == 1


def test_an_asynchronous_file_system_is_asked_by_several(store: Store, store_root: Path) -> None:
    turns = Turns()
    with registered(asynchronous(turns)) as remote:
        files = fill(remote)
        model = store.fetch(remote.url("bucket/m/"), connections=4)
        assert_model(store_root, model, remote.url("bucket/m/"), files)
    assert 2 <= turns.most <= 4
