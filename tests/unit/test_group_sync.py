"""One fsync of a directory for all who wait for it, and never one that began before they asked."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import pytest

from modelstore.transfer import files
from modelstore.transfer.files import GroupSync

WAIT = 30  # seconds: for what must happen; nothing depends on how long it takes


class Disk:
    """Stands in for ``fsync_dir``: each call says that it began, and ends when it is let."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.calls = 0
        self._fails = fails
        monkeypatch.setattr(files, "fsync_dir", self._fsync)

    def _fsync(self, path: str) -> None:
        assert path == "/names"
        self.calls += 1
        number = self.calls
        self.begun.release()
        assert self.may_end.acquire(timeout=WAIT)
        if number in self._fails:
            raise OSError(errno.EIO, f"sync {number}")


class Door:
    """A lock at which one can see how many have come."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._came = threading.Semaphore(0)

    def __enter__(self) -> None:
        self._came.release()
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._lock.release()

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self._came.acquire(timeout=WAIT)


class Crowd:
    """Threads that sync at once: one that began first, and ``count`` that came while it was under way."""

    def __init__(self, pool: ThreadPoolExecutor, disk: Disk, count: int) -> None:
        self.sync = GroupSync("/names")
        door = Door()
        self.sync._lock = door  # type: ignore[assignment]
        self.first = pool.submit(self.sync.sync)
        door.wait_for(1)
        assert disk.begun.acquire(timeout=WAIT)
        self.others = [pool.submit(self.sync.sync) for _ in range(count)]
        door.wait_for(count)


@pytest.fixture
def pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(16)


def errors(futures: list[Future[None]]) -> list[str | None]:
    found = (future.exception(WAIT) for future in futures)
    return [error.strerror if isinstance(error, OSError) else None for error in found]


def test_alone_each_call_is_a_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    sync = GroupSync("/names")
    for count in (1, 2, 3):
        disk.may_end.release()
        sync.sync()
        assert disk.calls == count


def test_those_who_wait_share_the_next_one(monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor) -> None:
    disk = Disk(monkeypatch)
    with pool:
        crowd = Crowd(pool, disk, 10)
        disk.may_end.release(2)
        assert errors([crowd.first, *crowd.others]) == [None] * 11
        assert disk.calls == 2


def test_one_that_began_before_the_call_does_not_count(
    monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor
) -> None:
    disk = Disk(monkeypatch)
    with pool:
        crowd = Crowd(pool, disk, 3)
        disk.may_end.release()
        assert errors([crowd.first]) == [None]
        assert disk.begun.acquire(timeout=WAIT)  # somebody began the next
        assert not any(future.done() for future in crowd.others)
        disk.may_end.release()
        assert errors(crowd.others) == [None] * 3


def test_a_failure_is_everybodys_who_waited_for_it(monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor) -> None:
    disk = Disk(monkeypatch, fails={2})
    with pool:
        crowd = Crowd(pool, disk, 5)
        disk.may_end.release(2)
        assert errors([crowd.first, *crowd.others]) == [None] + ["sync 2"] * 5
        assert disk.calls == 2  # a second try would claim success
        disk.may_end.release()
        crowd.sync.sync()  # who comes later has other names to sync
        assert disk.calls == 3


def test_a_failure_before_the_call_is_not_ones_own(monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor) -> None:
    disk = Disk(monkeypatch, fails={1})
    with pool:
        crowd = Crowd(pool, disk, 5)
        disk.may_end.release(2)
        assert errors([crowd.first, *crowd.others]) == ["sync 1"] + [None] * 5
        assert disk.calls == 2


def test_each_failure_is_told_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, fails={1, 2})
    disk.may_end.release(3)
    sync = GroupSync("/names")
    for message in ("sync 1", "sync 2"):
        with pytest.raises(OSError, match=message):
            sync.sync()
    sync.sync()
    assert disk.calls == 3


def test_what_is_no_failure_of_the_disk_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    sync = GroupSync("/names")
    with monkeypatch.context() as patch:
        patch.setattr(files, "fsync_dir", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sync.sync()
    disk = Disk(monkeypatch)
    disk.may_end.release()
    sync.sync()
    assert disk.calls == 1
