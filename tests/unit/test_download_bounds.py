"""What a fetch takes of the machine, whatever the model: requests, threads, descriptors, and what it counts."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelstore.digest import ChunkSums, Digest
from modelstore.errors import SourceUnavailable
from modelstore.progress import ProgressUpdate
from modelstore.sources.base import SourceFile
from modelstore.tiers.memory import MemoryTier
from modelstore.transfer import limits
from modelstore.transfer.download import Job, download
from tests.unit.engine import (
    CHUNK,
    IDENTITY,
    Reader,
    body_of,
    chunk,
    leave,
    make_tier,
    open_files,
    shrink_chunks,
    sum_of,
)

WAIT = 30  # seconds: for what must happen; nothing depends on how long it takes
CORES = 3


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_chunks(monkeypatch)
    monkeypatch.setattr("modelstore.transfer.download.cores", lambda: CORES)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before, files = set(threading.enumerate()), open_files()
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(WAIT)
    assert set(threading.enumerate()) <= before
    assert open_files() <= files


class Watch:
    """What is in use at once while readers are read."""

    def __init__(self) -> None:
        self._before, self._files = threading.active_count(), len(open_files())
        self._lock = threading.Lock()
        self.reads = self.most_reads = self.threads = self.files = 0

    def reader(self, body: bytes) -> Reader:
        return Reader(body, lambda made, start, stop: self._serve(made, start, stop))

    def _serve(self, made: Reader, start: int, stop: int) -> Iterator[bytes]:
        with self._lock:
            self.reads += 1
            self.most_reads = max(self.most_reads, self.reads)
            self.threads = max(self.threads, threading.active_count() - self._before)
            self.files = max(self.files, len(open_files()) - self._files)
        try:
            yield from made.serve(start, stop)
        finally:
            with self._lock:
                self.reads -= 1


def jobs_of(watch: Watch, *sizes: int) -> list[Job]:
    bodies = [body_of(size, number) for number, size in enumerate(sizes)]
    return [
        Job(SourceFile(f"{n}", len(body)), watch.reader(body), Digest.of(body), identity=Digest.of(b"%d" % n))
        for n, body in enumerate(bodies)
    ]


# -- requests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK])
def test_a_small_file_is_one_range(size: int) -> None:
    reader = Reader(body_of(size))
    download([Job(SourceFile("m", size), reader)], MemoryTier())
    assert reader.reads == [(0, size)]


def test_an_empty_file_is_not_asked_for() -> None:
    for ranges in (True, False):
        reader = Reader(b"")
        (brought,) = download([Job(SourceFile("m", 0, ranges=ranges), reader)], MemoryTier())
        assert (brought.digest, reader.reads) == (Digest.of(b""), [])
    assert download([], MemoryTier()) == []


def test_small_files_are_read_at_the_same_time() -> None:
    """Each waits until all are under way."""
    together = threading.Barrier(6)

    def script(made: Reader, start: int, stop: int) -> Iterator[bytes] | None:
        together.wait(WAIT)
        return None

    jobs = [Job(SourceFile(f"{n}", 10), Reader(body_of(10, n), script)) for n in range(6)]
    assert len(download(jobs, MemoryTier(), connections=6)) == 6


def test_a_small_file_does_not_wait_for_a_large_one_that_stalls() -> None:
    """Its first range does not come before the small file is there."""
    small_read = threading.Event()

    def hold(made: Reader, start: int, stop: int) -> Iterator[bytes] | None:
        assert start or small_read.wait(WAIT)
        return None

    def tell(made: Reader, start: int, stop: int) -> Iterator[bytes] | None:
        small_read.set()
        return None

    large = Job(SourceFile("large", 20 * CHUNK), Reader(body_of(20 * CHUNK), hold))
    small = Job(SourceFile("small", 10), Reader(body_of(10), tell))
    assert len(download([large, small], MemoryTier(), connections=2)) == 2


def test_results_are_in_the_order_of_the_jobs() -> None:
    sizes = [5, 3 * CHUNK, 0, CHUNK, 2 * CHUNK + 1, 7]
    jobs = jobs_of(Watch(), *sizes)
    assert [brought.digest for brought in download(jobs, MemoryTier())] == [job.expected for job in jobs]


# -- what is in use at once --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connections", [1, 4, None])
def test_many_small_and_some_large_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connections: int | None
) -> None:
    home, watch = make_tier(tmp_path, monkeypatch), Watch()
    sizes = [100] * 200 + [5 * CHUNK] * 10
    random.Random(1).shuffle(sizes)
    jobs = jobs_of(watch, *sizes)
    download(jobs, home, connections=connections)
    most = connections or limits.MOST_CONNECTIONS
    assert watch.most_reads <= most
    assert watch.threads <= CORES + most
    assert watch.files <= 4 * (CORES + most)  # a staged file, a journal, and what lists or syncs a directory
    assert home.missing([job.expected for job in jobs if job.expected]) == set()


def test_at_most_as_many_large_files_are_open_as_there_are_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, lock = make_tier(tmp_path, monkeypatch), threading.Lock()
    most = 0

    def look(made: Reader, start: int, stop: int) -> Iterator[bytes] | None:
        nonlocal most
        staged = [path for path in map(_target, os.listdir("/proc/self/fd")) if path.endswith(".staged")]
        with lock:
            most = max(most, len(set(staged)))
        return None

    bodies = [body_of(4 * CHUNK, number) for number in range(12)]
    download([Job(SourceFile(f"{n}", len(b)), Reader(b, look)) for n, b in enumerate(bodies)], home, connections=8)
    assert 1 <= most <= CORES


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""  # it was the listing's own, or is closed by now


def test_a_named_number_is_kept_even_by_one_large_file() -> None:
    watch = Watch()
    download(jobs_of(watch, 50 * CHUNK), MemoryTier(), connections=2)
    assert watch.most_reads <= 2


@pytest.mark.parametrize("count", [1, 40])
def test_after_a_failure_no_thread_and_no_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Far more is queued than is under way: see ``nothing_left``."""
    home, watch = make_tier(tmp_path, monkeypatch), Watch()
    error = SourceUnavailable("away", retryable=False)

    def fail(made: Reader, start: int, stop: int) -> Iterator[bytes]:
        raise error

    bad = Job(SourceFile("bad", 9 * CHUNK), Reader(body_of(9 * CHUNK), fail))
    jobs = [*jobs_of(watch, *[10 * CHUNK] * count, *[100] * count), bad]
    with pytest.raises(SourceUnavailable):
        download(jobs, home, connections=2)
    assert all(job.reader.closed for job in jobs if isinstance(job.reader, Reader))


# -- counting ----------------------------------------------------------------------------------------------------------


def check(updates: list[ProgressUpdate], total: int, files: int) -> None:
    for update in updates:
        assert 0 <= update.bytes_resumed <= update.bytes_done <= update.bytes_total == total
        assert 0 <= update.files_done <= update.files_total == files
    assert [update.done for update in updates] == [False] * (len(updates) - 1) + [True]
    assert (updates[-1].bytes_done, updates[-1].files_done) == (total, files)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 4 * CHUNK), max_size=5),
    connections=st.integers(1, 6),
    seed=st.integers(0, 99),
    ranges=st.booleans(),
)
def test_any_files_over_a_bad_network(sizes: list[int], connections: int, seed: int, ranges: bool) -> None:
    """Reads that end early, fail, or give nothing: every byte is there, once, and counted once."""
    randomness, lock = random.Random(seed), threading.Lock()

    def script(made: Reader, start: int, stop: int) -> Iterator[bytes] | None:
        with lock:
            roll, cut = randomness.random(), randomness.randrange(start, stop + 1)
        if roll < 0.3 and made.asked(start) < 3:
            return made.serve(start, cut, SourceUnavailable("reset") if roll < 0.15 else None)
        return None

    bodies = [body_of(size, number) for number, size in enumerate(sizes)]
    jobs = [Job(SourceFile(f"{n}", len(b), ranges=ranges), Reader(b, script)) for n, b in enumerate(bodies)]
    home, updates = MemoryTier(), list[ProgressUpdate]()
    brought = download(jobs, home, connections=connections, progress=updates.append)
    for body, blob in zip(bodies, brought, strict=True):
        assert b"".join(home.open_range(blob.digest, 0, len(body))) == body
        assert home.read_sums(blob.digest) == ChunkSums.of([body], CHUNK)
    check(updates, sum(sizes), len(sizes))


def test_what_was_resumed_is_counted_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, body = make_tier(tmp_path, monkeypatch), body_of(6 * CHUNK)
    leave(tmp_path, body, {index: sum_of(chunk(body, index)) for index in range(4)})
    updates: list[ProgressUpdate] = []
    jobs = [*jobs_of(Watch(), 100, 3 * CHUNK), Job(SourceFile("m", len(body)), Reader(body), identity=IDENTITY)]
    results: list[Any] = download(jobs, home, connections=2, progress=updates.append)
    check(updates, len(body) + 3 * CHUNK + 100, 3)
    assert updates[-1].bytes_resumed == results[-1].resumed == 4 * CHUNK
