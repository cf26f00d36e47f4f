"""The engine, with readers that do what a network does."""

import errno
import random
import threading
from collections.abc import Callable, Iterator

import pytest

from modelstore.config import TierConfig
from modelstore.digest import CHUNK_SIZE, ChunkSums, Digest
from modelstore.errors import BlobCorrupt, NoSpace, SourceChanged, SourceCorrupt, SourceUnavailable
from modelstore.progress import ProgressUpdate
from modelstore.sources.base import RangesIgnored, SourceFile
from modelstore.tiers.directory import DirectoryTier
from modelstore.tiers.memory import MemoryTier
from modelstore.transfer import limits
from modelstore.transfer.download import Job, download

SIZE = 2 * CHUNK_SIZE + 1000
BODY = random.Random(3).randbytes(SIZE)
DIGEST = Digest.of(BODY)
Read = Callable[[SourceFile, int, int], Iterator[bytes]]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FIRST_DELAY", 0.0)


class Reader:
    """Serves BODY; ``script`` may do something else for the n-th read (counted from 1)."""

    def __init__(self, script: Callable[[int, int, int], Iterator[bytes] | None] = lambda *_: None) -> None:
        self._script = script
        self._lock = threading.Lock()
        self.reads: list[tuple[int, int]] = []
        self.closed = False

    def open_range(self, file: SourceFile, start: int, stop: int) -> Iterator[bytes]:
        with self._lock:
            self.reads.append((start, stop))
            number = len(self.reads)
        pieces = self._script(number, start, stop)
        return serve(start, stop) if pieces is None else pieces

    def close(self) -> None:
        self.closed = True


def serve(start: int, stop: int, error: Exception | None = None) -> Iterator[bytes]:
    for position in range(start, stop, 1 << 20):
        yield BODY[position : min(position + (1 << 20), stop)]
    if error:
        raise error


def fetch(
    reader: Reader, *, expected: Digest | None = None, ranges: bool = True, tier: str | None = None
) -> MemoryTier:
    home = MemoryTier()
    file = SourceFile("m.gguf", SIZE, ranges=ranges)
    download([Job(file, reader, expected, tier)], home, connections=4)
    return home


def assert_right(home: MemoryTier) -> None:
    assert b"".join(home.open_range(DIGEST, 0, SIZE)) == BODY
    assert home.read_sums(DIGEST) == ChunkSums.of([BODY])


@pytest.mark.parametrize("ranges", [True, False])
def test_reads_every_byte_once(ranges: bool) -> None:
    reader = Reader()
    assert_right(fetch(reader, ranges=ranges))
    assert sum(stop - start for start, stop in reader.reads) == SIZE
    assert len(reader.reads) == (3 if ranges else 1)


@pytest.mark.parametrize("error", [None, SourceUnavailable("reset")])
def test_goes_on_at_the_next_missing_byte(error: Exception | None) -> None:
    """A connection that breaks every five pieces still gets there, and nothing is read twice."""
    reader = Reader(lambda _, start, stop: serve(start, min(stop, start + 5_000_000), error))
    assert_right(fetch(reader, expected=DIGEST))
    assert sum(min(stop, start + 5_000_000) - start for start, stop in reader.reads) == SIZE


@pytest.mark.parametrize("ranges", [True, False])
def test_gives_up_when_nothing_comes(ranges: bool) -> None:
    reader = Reader(lambda *_: iter(()))
    with pytest.raises(SourceUnavailable):
        fetch(reader, ranges=ranges)
    assert limits.TRIES <= len(reader.reads) <= 3 * limits.TRIES
    assert reader.closed


def test_gives_up_when_too_little_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte at a time is progress, but the fetch as a whole has a budget."""
    monkeypatch.setattr(limits, "FETCH_TRIES", 10)
    reader = Reader(lambda _, start, stop: iter([BODY[start : start + 1]]))
    with pytest.raises(SourceUnavailable):
        fetch(reader)
    assert len(reader.reads) < 40


def test_a_failure_for_good_is_not_tried_again() -> None:
    reader = Reader(lambda _, start, stop: serve(start, start, SourceUnavailable("no", retryable=False)))
    with pytest.raises(SourceUnavailable, match="no"):
        fetch(reader)
    assert len(reader.reads) <= 3


def test_a_stream_that_breaks_begins_again() -> None:
    reader = Reader(lambda number, start, stop: serve(start, 1_000_000) if number < 3 else None)
    assert_right(fetch(reader, ranges=False))
    assert reader.reads == [(0, SIZE)] * 3


def test_ranges_that_are_ignored_become_one_stream() -> None:
    def script(_: int, start: int, stop: int) -> Iterator[bytes] | None:
        if (start, stop) != (0, SIZE):
            raise RangesIgnored
        return None

    reader = Reader(script)
    updates: list[ProgressUpdate] = []
    home = MemoryTier()
    job = Job(SourceFile("m.gguf", SIZE), reader, DIGEST)
    download([job], home, connections=4, progress=updates.append)
    assert_right(home)
    assert updates[-1].bytes_done == SIZE


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("expected", [None, DIGEST])
def test_more_than_was_announced_is_corrupt(ranges: bool, expected: Digest | None) -> None:
    def endless(_: int, start: int, stop: int) -> Iterator[bytes]:
        yield from serve(start, stop)
        while True:
            yield b"more"

    with pytest.raises(SourceCorrupt, match="more bytes"):
        fetch(Reader(endless), ranges=ranges, expected=expected)


def test_wrong_bytes_are_the_fault_of_who_sent_them() -> None:
    def flipped(_: int, start: int, stop: int) -> Iterator[bytes]:
        yield bytes([BODY[start] ^ 1])
        yield from serve(start + 1, stop)

    with pytest.raises(SourceCorrupt, match=DIGEST.hex):
        fetch(Reader(flipped), expected=DIGEST)
    with pytest.raises(BlobCorrupt, match=DIGEST.hex) as caught:
        fetch(Reader(flipped), expected=DIGEST, tier="slow")
    assert caught.value.tier == "slow"


def test_the_first_cause_is_what_is_raised() -> None:
    def script(number: int, start: int, stop: int) -> Iterator[bytes]:
        return serve(start, stop if start != CHUNK_SIZE else start, SourceChanged("other") if start else None)

    with pytest.raises(SourceChanged, match="other"):
        fetch(Reader(script))


def test_all_files_or_none(tmp_path: object) -> None:
    """One file of many fails: the call fails, and says why."""
    good = [Job(SourceFile(f"{number}", SIZE), Reader()) for number in range(3)]
    bad = Job(SourceFile("bad", SIZE), Reader(lambda _, start, stop: serve(start, start, SourceChanged("bad"))))
    with pytest.raises(SourceChanged, match="bad"):
        download([*good, bad], MemoryTier(), connections=2)
    assert all(job.reader.closed for job in [*good, bad] if isinstance(job.reader, Reader))


def test_space_is_checked_before_the_first_byte(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = DirectoryTier(TierConfig(str(tmp_path), "disk"))
    monkeypatch.setattr(tier, "free_bytes", lambda: SIZE - 1)
    reader = Reader()
    with pytest.raises(NoSpace, match=r"32\.0 MiB are needed") as caught:
        download([Job(SourceFile("m.gguf", SIZE), reader)], tier, connections=1)
    assert (caught.value.errno, reader.reads) == (errno.ENOSPC, [])


def test_no_thread_outlives_the_call() -> None:
    before = set(threading.enumerate())
    fetch(Reader())
    with pytest.raises(SourceCorrupt):
        fetch(Reader(lambda _, start, stop: iter([BODY] * 2)))
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert set(threading.enumerate()) <= before
