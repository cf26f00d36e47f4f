"""What leaves the page cache when, and that a disk that fails behind one's back is noticed."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from modelstore.digest import ChunkSums, Digest
from modelstore.errors import ModelStoreError
from modelstore.tiers.directory import DirectoryTier
from modelstore.transfer import files
from modelstore.transfer import staging as staging_module
from modelstore.transfer.files import drop_cached, start_writing_back
from tests.unit.engine import CHUNK, IDENTITY, body_of, chunk, make_tier, shrink_chunks

CHUNKS = 12
BODY = body_of(CHUNKS * CHUNK)
DIGEST = Digest.of(BODY)
SUMS = ChunkSums.of([BODY], CHUNK)
Call = tuple[str, int, int]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_chunks(monkeypatch)


@pytest.fixture
def tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DirectoryTier:
    return make_tier(tmp_path, monkeypatch)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What the kernel is told about staged files, in order."""
    seen: list[Call] = []

    def watch(name: str) -> None:
        monkeypatch.setattr(staging_module, name, lambda _, start, stop: seen.append((name, start, stop)))

    watch("drop_cached")
    watch("start_writing_back")
    real = os.fsync

    def fsync(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".staged"):
            seen.append(("fsync", 0, 0))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    return seen


def bring(tier: DirectoryTier, *, keep_cache: bool) -> None:
    with tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=keep_cache) as file:
        for index in range(CHUNKS):
            file.write_at(index * CHUNK, chunk(BODY, index))
        for index in range(CHUNKS):
            file.settle(index * CHUNK, (index + 1) * CHUNK)
        assert file.commit(SUMS) == DIGEST


def spans(calls: list[Call], name: str) -> list[tuple[int, int]]:
    return [(start, stop) for call, start, stop in calls if call == name]


WHOLE = [(index * CHUNK, (index + 1) * CHUNK) for index in range(CHUNKS)]


def test_what_fits_stays_in_memory_and_is_on_its_way_to_the_disk(tier: DirectoryTier, calls: list[Call]) -> None:
    bring(tier, keep_cache=True)
    assert spans(calls, "start_writing_back") == WHOLE
    assert spans(calls, "drop_cached") == []


def test_what_does_not_fit_is_dropped_a_little_behind(tier: DirectoryTier, calls: list[Call]) -> None:
    """Each chunk is given to the disk at once, and dropped when some more are: waiting for it then costs nothing."""
    bring(tier, keep_cache=False)
    assert spans(calls, "start_writing_back") == WHOLE
    dropped = spans(calls, "drop_cached")
    assert dropped[:-1] == WHOLE[: len(dropped) - 1]
    assert len(dropped) - 1 >= CHUNKS - 4
    for span in dropped[:-1]:
        behind = calls.index(("drop_cached", *span)) - calls.index(("start_writing_back", *span))
        assert behind >= 4
    assert dropped[-1] == (0, len(BODY))
    assert calls.index(("fsync", 0, 0)) < calls.index(("drop_cached", 0, len(BODY)))  # dirty pages are not dropped


class Kernel:
    """sync_file_range(2) that says how it was called, and may fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int = 0) -> None:
        self.flags: list[int] = []
        self._code = code
        monkeypatch.setattr(files, "_sync_file_range", lambda: self)

    def __call__(self, fd: int, start: int, length: int, flags: int) -> int:
        self.flags.append(flags)
        if flags == 2:  # only to begin: no error is known yet
            return 0
        ctypes.set_errno(self._code)
        return -1 if self._code else 0


def test_starting_does_not_wait_and_dropping_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    advice: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *args: advice.append(args))
    start_writing_back(0, 10, 30)
    drop_cached(0, 10, 30)
    assert kernel.flags == [2, 7]
    assert advice == [(10, 20, os.POSIX_FADV_DONTNEED)]


def test_a_system_without_these_calls_does_without(
    tmp_path: Path, tier: DirectoryTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(files, "_sync_file_range", lambda: None)
    monkeypatch.setattr(os, "posix_fadvise", refuse)
    bring(tier, keep_cache=False)
    assert (tmp_path / "blobs" / DIGEST.filename).read_bytes() == BODY


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_bytes_that_the_disk_lost_before_the_fsync_are_not_published(
    tmp_path: Path, tier: DirectoryTier, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Waiting for writeback reports its failure, and a failure is reported once per open file (errseq_t): the fsync
    that follows says that all is well, about a page that is clean, in memory only, and then dropped."""
    Kernel(monkeypatch, code)
    with pytest.raises(ModelStoreError):
        bring(tier, keep_cache=False)
    assert tier.missing([DIGEST]) == {DIGEST}
