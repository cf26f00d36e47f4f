"""A fetch that ends too early, and the one that goes on with what it left."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from modelstore.config import TierConfig
from modelstore.digest import ChunkSums, Digest
from modelstore.errors import (
    BlobCorrupt,
    Cancelled,
    ModelStoreError,
    NoSpace,
    SourceChanged,
    SourceCorrupt,
    SourceUnauthorized,
    SourceUnavailable,
)
from modelstore.progress import ProgressUpdate
from modelstore.sources.base import RangesIgnored, SourceFile
from modelstore.tiers.directory import DirectoryTier
from modelstore.tiers.memory import MemoryTier
from modelstore.transfer.download import Brought, Job, download
from tests.unit.engine import (
    CHUNK,
    IDENTITY,
    Reader,
    body_of,
    chunk,
    flipped,
    leave,
    made_old,
    make_tier,
    shrink_chunks,
    staging,
    sum_of,
)

CHUNKS = 8
BODY = body_of(CHUNKS * CHUNK - 7)
DIGEST = Digest.of(BODY)
WRONG = flipped(BODY, 5, 4 * CHUNK)
WAIT = 30


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_chunks(monkeypatch)


@pytest.fixture(params=[True, False], ids=["local", "not local"])
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> DirectoryTier:
    return make_tier(tmp_path, monkeypatch, local=request.param)


def bring(
    home: Any, reader: Reader, *, expected: Digest | None = DIGEST, connections: int = 1, **options: Any
) -> Brought:
    job = Job(SourceFile("m.gguf", len(BODY)), reader, expected, identity=IDENTITY)
    (brought,) = download([job], home, connections=connections, **options)
    return brought


def names(root: Path) -> list[str]:
    """What is left there, but for notes that a file was published: they go when a ref is written."""
    left = (Path(staging(root), name) for name in os.listdir(staging(root)))
    return sorted(file.name for file in left if b"\ndone " not in file.read_bytes())


def fails_at(index: int, error: BaseException) -> Reader:
    """Nothing from this chunk on, which is asked for when those before it are there."""

    def script(_: Reader, start: int, __: int) -> Iterator[bytes] | None:
        if start >= index * CHUNK:
            raise error
        return None

    return Reader(BODY, script)


def assert_right(root: Path) -> None:
    assert (root / "blobs" / DIGEST.filename).read_bytes() == BODY
    assert names(root) == []


# -- what is kept ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [SourceUnavailable("away"), SourceUnavailable("for good", retryable=False), SourceUnauthorized("expired")],
    ids=["away", "for good", "unauthorized"],
)
def test_what_had_come_is_gone_on_with(tmp_path: Path, home: DirectoryTier, error: SourceUnavailable) -> None:
    with pytest.raises(type(error)):
        bring(home, fails_at(5, error))
    assert len(names(tmp_path)) == 2
    reader, updates = Reader(BODY), list[ProgressUpdate]()
    brought = bring(home, reader, progress=updates.append)
    assert brought == Brought(DIGEST, 5 * CHUNK)
    assert reader.reads == [(start, min(start + CHUNK, len(BODY))) for start in range(5 * CHUNK, len(BODY), CHUNK)]
    assert (updates[-1].bytes_done, updates[-1].bytes_resumed) == (len(BODY), 5 * CHUNK)
    assert_right(tmp_path)


class Hanging(Reader):
    """One chunk does not come until the reader is closed."""

    def __init__(self, index: int, body: bytes = BODY) -> None:
        super().__init__(body, self._hang)
        self._index = index
        self.reached, self.shut = threading.Event(), threading.Event()

    def _hang(self, _: Reader, start: int, __: int) -> Iterator[bytes] | None:
        if start != self._index * CHUNK:
            return None
        self.reached.set()
        assert self.shut.wait(WAIT)
        raise SourceUnavailable("shut")

    def close(self) -> None:
        self.shut.set()


def wait_for_threads() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("modelstore"):
            thread.join(WAIT)
            assert not thread.is_alive()


def test_a_fetch_that_is_cancelled_leaves_what_had_come(tmp_path: Path, home: DirectoryTier) -> None:
    hanging = Hanging(3)
    with pytest.raises(Cancelled):
        bring(home, hanging, cancel=hanging.reached)
    wait_for_threads()
    assert bring(home, Reader(BODY)).resumed == 3 * CHUNK
    assert_right(tmp_path)


def test_an_interrupt_leaves_what_had_come(tmp_path: Path, home: DirectoryTier) -> None:
    hanging = Hanging(2)

    def interrupted(_: ProgressUpdate) -> None:
        if hanging.reached.is_set():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring(home, hanging, progress=interrupted)
    wait_for_threads()
    assert bring(home, Reader(BODY)).resumed == 2 * CHUNK
    assert_right(tmp_path)


def test_on_a_full_disk_nothing_is_kept(tmp_path: Path, home: DirectoryTier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the file that met it, and not of those beside it."""
    real, other = os.pwrite, body_of(len(BODY), 1)
    assert other[:1] != BODY[:1]
    beside = Hanging(2, other)

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if offset == 0 and bytes(data[:1]) == BODY[:1]:
            assert beside.reached.wait(WAIT)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    jobs = [
        Job(SourceFile("m", len(BODY)), Reader(BODY), identity=IDENTITY),
        Job(SourceFile("n", len(BODY)), beside, identity=Digest.of(b"n")),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        patch.setattr("modelstore.transfer.download.cores", lambda: 2)
        with pytest.raises(NoSpace):
            download(jobs, home, connections=4)
    wait_for_threads()
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [SourceChanged("other"), SourceCorrupt("wrong")], ids=["changed", "corrupt"])
def test_of_bytes_that_are_in_doubt_nothing_is_kept(
    tmp_path: Path, home: DirectoryTier, error: ModelStoreError
) -> None:
    with pytest.raises(type(error)):
        bring(home, fails_at(5, error))
    assert names(tmp_path) == []


def test_without_an_identity_nothing_is_kept(tmp_path: Path, home: DirectoryTier) -> None:
    job = Job(SourceFile("m", len(BODY)), fails_at(5, SourceUnavailable("away", retryable=False)))
    with pytest.raises(SourceUnavailable):
        download([job], home, connections=1)
    assert names(tmp_path) == []


@pytest.mark.parametrize(("size", "ranges"), [(CHUNK, True), (len(BODY), False)])
def test_one_chunk_or_one_stream_is_not_gone_on_with(
    tmp_path: Path, home: DirectoryTier, size: int, ranges: bool
) -> None:
    left = leave(tmp_path, BODY[:size])
    reader = Reader(BODY)
    job = Job(SourceFile("m", size, ranges=ranges), reader, Digest.of(BODY[:size]), identity=IDENTITY)
    assert download([job], home) == [Brought(Digest.of(BODY[:size]), 0)]
    assert reader.reads == [(0, size)]
    assert left.exists()


# -- what is wrong with what was left ----------------------------------------------------------------------------------


def test_chunks_that_do_not_match_their_journal_are_read_again(tmp_path: Path, home: DirectoryTier) -> None:
    sums = {index: sum_of(chunk(BODY, index)) for index in range(CHUNKS)}
    leave(tmp_path, WRONG, sums)
    reader = Reader(BODY)
    assert bring(home, reader).resumed == len(BODY) - 2 * CHUNK
    assert sorted(reader.reads) == [(0, CHUNK), (4 * CHUNK, 5 * CHUNK)]
    assert_right(tmp_path)


@pytest.mark.parametrize("left", [1, 2])
def test_bytes_of_another_file_cost_one_more_reading(tmp_path: Path, home: DirectoryTier, left: int) -> None:
    """Journal and bytes agree, but on what a proxy or a source once sent in place of the model."""
    for _ in range(left):
        leave(tmp_path, WRONG)
    reader, updates = Reader(BODY), list[ProgressUpdate]()
    brought = bring(home, reader, progress=updates.append)
    assert brought == Brought(DIGEST, 0)
    assert reader.asked_for == len(BODY)
    assert (updates[-1].bytes_done, updates[-1].bytes_resumed) == (len(BODY), 0)
    assert_right(tmp_path)


def test_the_next_fetch_is_not_misled_either(tmp_path: Path, home: DirectoryTier) -> None:
    """A leftover of wrong bytes must not make every fetch fail until it is a day old."""
    leave(tmp_path, WRONG)
    for _ in range(3):
        with suppress(SourceCorrupt):
            bring(home, Reader(BODY))
    assert_right(tmp_path)


@pytest.mark.parametrize(("tier", "kind"), [(None, SourceCorrupt), ("pvc", BlobCorrupt)])
def test_a_source_that_is_wrong_itself_is_read_twice_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tier: str | None, kind: type[Exception]
) -> None:
    home = make_tier(tmp_path, monkeypatch)
    leave(tmp_path, WRONG, {1: sum_of(chunk(WRONG, 1))})
    reader = Reader(WRONG)
    job = Job(SourceFile("m", len(BODY)), reader, DIGEST, tier, identity=IDENTITY)
    with pytest.raises(kind, match=DIGEST.hex):
        download([job], home)
    assert reader.asked_for == 2 * len(BODY) - CHUNK
    assert names(tmp_path) == []


def test_known_sums_show_which_chunk_was_wrong(tmp_path: Path, home: DirectoryTier) -> None:
    leave(tmp_path, WRONG)
    reader = Reader(BODY)
    job = Job(SourceFile("m", len(BODY)), reader, DIGEST, "pvc", ChunkSums.of([BODY], CHUNK), identity=IDENTITY)
    (brought,) = download([job], home)
    assert brought == Brought(DIGEST, len(BODY) - 2 * CHUNK)
    assert sorted(reader.reads) == [(0, CHUNK), (4 * CHUNK, 5 * CHUNK)]
    assert_right(tmp_path)


def test_a_server_that_has_no_ranges_any_more(tmp_path: Path, home: DirectoryTier) -> None:
    """What was left cannot be used, and is not counted."""

    def script(_: Reader, start: int, stop: int) -> Iterator[bytes] | None:
        if (start, stop) != (0, len(BODY)):
            raise RangesIgnored
        return None

    leave(tmp_path, BODY, {index: sum_of(chunk(BODY, index)) for index in (0, 1, 2)})
    reader, updates = Reader(BODY, script), list[ProgressUpdate]()
    assert bring(home, reader, progress=updates.append) == Brought(DIGEST, 0)
    assert (updates[-1].bytes_done, updates[-1].bytes_resumed) == (len(BODY), 0)
    assert (tmp_path / "blobs" / DIGEST.filename).read_bytes() == BODY


def test_a_leftover_of_all_bytes_needs_no_reading(tmp_path: Path, home: DirectoryTier) -> None:
    leave(tmp_path, BODY)
    reader = Reader(BODY)
    assert bring(home, reader) == Brought(DIGEST, len(BODY))
    assert reader.reads == []
    assert_right(tmp_path)


def test_a_tier_that_cannot_resume_is_not_asked_to() -> None:
    home = MemoryTier()
    with pytest.raises(SourceUnavailable):
        bring(home, fails_at(5, SourceUnavailable("away", retryable=False)))
    assert bring(home, Reader(BODY)) == Brought(DIGEST, 0)


def test_old_leftovers_of_other_models_go_and_ones_own_is_used(tmp_path: Path, home: DirectoryTier) -> None:
    own = leave(tmp_path, BODY, age=3600)
    other = leave(tmp_path, BODY, identity=Digest.of(b"other"), age=2 * 24 * 3600)
    bare = staging(tmp_path) / "bare.staged"
    bare.touch()
    made_old(bare, 3600)
    fresh = DirectoryTier(TierConfig(str(tmp_path), "home"))  # it sweeps once
    assert bring(fresh, Reader(BODY)).resumed == len(BODY)
    assert [path.exists() for path in (own, other, bare)] == [False, False, False]
