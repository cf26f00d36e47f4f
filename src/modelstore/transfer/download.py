"""The engine: reads ranges of many files in parallel into a tier, and hashes behind them."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from threading import Event, Lock
from typing import Final, Protocol

from modelstore.digest import CHUNK_SIZE, ChunkSums, Digest, chunk_hasher
from modelstore.errors import (
    BlobCorrupt,
    Cancelled,
    ModelStoreError,
    NoSpace,
    SourceCorrupt,
    SourceUnavailable,
)
from modelstore.progress import Progress, ProgressUpdate, human_size
from modelstore.sources.base import RangesIgnored, SourceFile
from modelstore.tiers.base import Ingest, SupportsFreeSpace, Tier
from modelstore.transfer.plan import Chunk, plan_chunks

__all__ = ["Job", "RangeReader", "download"]

#: Failures in a row, without a byte between them, after which a chunk is given up.
TRIES: Final = 6
#: Failures that one fetch may have in all: this many, and one for every chunk.
FETCH_TRIES: Final = 64
FIRST_DELAY: Final = 0.25
LONGEST_DELAY: Final = 8.0
#: How long a failed or cancelled fetch waits for its threads: a read that is under way ends when its socket is shut.
STOP_SECONDS: Final = 1.5
_REPORT_SECONDS: Final = 0.1


class RangeReader(Protocol):
    """A source, or a tier that is read like one."""

    def open_range(self, file: SourceFile, start: int, stop: int) -> Iterator[bytes]:
        """As :meth:`modelstore.sources.base.Source.open_range`."""
        ...

    def close(self) -> None:
        """As :meth:`modelstore.sources.base.Source.close`."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """One blob to bring: the file, who reads it, and the digest that it must have, if that is known.

    ``tier`` names the tier that it comes from, None for the source; it decides whose fault wrong bytes are.
    """

    file: SourceFile
    reader: RangeReader
    expected: Digest | None = None
    tier: str | None = None


class _Stopped(Exception):
    """Work that goes on for nothing ends with this."""


def download(
    jobs: Sequence[Job],
    tier: Tier,
    *,
    connections: int,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> list[Digest]:
    """Bring every job's blob into ``tier`` and return their digests, in the order of the jobs.

    ``connections`` ranges are read at once; as many files as there are cores are open, so that each core hashes one.
    ``progress`` is called from this thread. Raises the first failure, or ``Cancelled`` once ``cancel`` is set; blobs
    that were complete by then stay.
    """
    needed = sum(job.file.size for job in jobs)
    if isinstance(tier, SupportsFreeSpace) and tier.free_bytes() < needed:
        tier.reclaim()
        if (free := tier.free_bytes()) < needed:
            raise NoSpace(
                f"{human_size(needed)} are needed and {human_size(free)} are free",
                tier=tier.name,
                op="fetch",
                hint="free some space, or use another tier",
            )
    return _Engine(jobs, tier, connections, cancel, progress).run()


class _Engine:
    def __init__(
        self, jobs: Sequence[Job], tier: Tier, connections: int, cancel: Event | None, progress: Progress | None
    ) -> None:
        self._jobs = jobs
        self._tier = tier
        self._cancel = cancel
        self._progress = progress
        self._stop = Event()
        self._lock = Lock()
        self._bytes = self._files = self._failures = 0
        self._total = sum(job.file.size for job in jobs)
        self._budget = FETCH_TRIES + sum(len(plan_chunks(job.file.size)) for job in jobs)
        self._connections = connections

    def run(self) -> list[Digest]:
        at_once = max(1, min(os.cpu_count() or 1, len(self._jobs)))
        self._ranges = ThreadPoolExecutor(self._connections, "modelstore-range")
        files = ThreadPoolExecutor(at_once, "modelstore-file")
        futures = [files.submit(self._fetch, job) for job in self._jobs]
        try:
            self._watch(futures)
        except BaseException:
            self._stop.set()
            for job in self._jobs:
                job.reader.close()
            files.shutdown(wait=False, cancel_futures=True)
            wait(futures, timeout=STOP_SECONDS)  # so that staged files are gone when this returns
            raise
        finally:
            files.shutdown(wait=False)
            self._ranges.shutdown(wait=False)
        return [future.result() for future in futures]

    def _watch(self, futures: Sequence["Future[Digest]"]) -> None:
        """Wait, report and listen, in the caller's thread."""
        pending = set(futures)
        while pending:
            if self._cancel is not None and self._cancel.is_set():
                raise Cancelled("the fetch was cancelled")
            done, pending = wait(pending, timeout=_REPORT_SECONDS, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            self._report(done=False)
        self._report(done=True)

    def _report(self, *, done: bool) -> None:
        if self._progress is not None:
            self._progress(ProgressUpdate(self._bytes, self._total, self._files, len(self._jobs), done))

    def _count(self, size: int) -> None:
        with self._lock:
            self._bytes += size

    # -- one file, in a thread of its own ---------------------------------------------------------------------------

    def _fetch(self, job: Job) -> Digest:
        tries = 0
        while True:
            counted = _Counter(self._count)
            try:
                digest = self._fetch_once(job, counted)
            except RangesIgnored:
                counted.undo()
                job = replace(job, file=replace(job.file, ranges=False))
            except SourceUnavailable as error:
                # A stream cannot go on in the middle; ranges have been tried again chunk by chunk already.
                if job.file.ranges or not error.retryable or (tries := tries + 1) >= TRIES:
                    raise
                counted.undo()
                self._pause(error, tries)
            else:
                with self._lock:
                    self._files += 1
                return digest

    def _fetch_once(self, job: Job, counted: "_Counter") -> Digest:
        file = job.file
        with self._tier.ingest(file.size, job.expected) as ingest:
            read = self._read_chunks if file.ranges else self._read_stream
            sums = ChunkSums(file.size, tuple(read(job, ingest, counted)))
            ingest.hash_to(file.size)
            if job.expected is not None and ingest.digest != job.expected:
                raise _wrong_bytes(job, ingest.digest)
            return ingest.commit(sums)

    def _read_chunks(self, job: Job, ingest: Ingest, counted: "_Counter") -> list[str]:
        """Read all chunks in parallel, and hash what has arrived without a gap."""
        failed = _FirstError()
        plan = plan_chunks(job.file.size)
        futures = [self._ranges.submit(self._read_chunk, job, ingest, chunk, counted, failed) for chunk in plan]
        sums: list[str] = []
        try:
            for chunk, future in zip(plan, futures, strict=True):
                sums.append(future.result())
                ingest.hash_to(chunk.stop)
        except BaseException as error:  # noqa: BLE001  whatever it was, it is raised below
            failed.set(error)
            for future in futures:
                future.cancel()
            wait(futures)  # nobody may write into the staged file after it was let go of
            raise failed.error  # noqa: B904  it has its own cause
        return sums

    def _read_chunk(self, job: Job, ingest: Ingest, chunk: Chunk, counted: "_Counter", failed: "_FirstError") -> str:
        """One chunk, begun again at the next missing byte as often as it helps."""
        hasher = chunk_hasher()
        position, tries = chunk.start, 0
        try:
            while position < chunk.stop:
                begun = position
                problem: SourceUnavailable | None = None
                try:
                    for piece in job.reader.open_range(job.file, position, chunk.stop):
                        if self._stop.is_set() or failed.is_set():
                            raise _Stopped
                        _check_room(job, position + len(piece), chunk.stop)
                        ingest.write_at(position, piece)
                        hasher.update(piece)
                        position += len(piece)
                        counted.add(len(piece))
                except SourceUnavailable as error:
                    if not error.retryable:
                        raise
                    problem = error
                if position < chunk.stop:
                    tries = 1 if position > begun else tries + 1
                    self._again(job, problem, tries)
            return str(hasher.hexdigest())
        except BaseException as error:
            failed.set(error)
            raise

    def _read_stream(self, job: Job, ingest: Ingest, counted: "_Counter") -> list[str]:
        """The whole file in one stream, hashed at each chunk border."""
        position, size = 0, job.file.size
        sums: list[str] = []
        hasher = chunk_hasher()
        for piece in job.reader.open_range(job.file, 0, size) if size else ():
            if self._stop.is_set():
                raise _Stopped
            _check_room(job, position + len(piece), size)
            ingest.write_at(position, piece)
            counted.add(len(piece))
            border = CHUNK_SIZE - position % CHUNK_SIZE
            hasher.update(piece[:border])
            position += len(piece)
            if len(piece) >= border:
                sums.append(str(hasher.hexdigest()))
                hasher = chunk_hasher()
                hasher.update(piece[border:])
                ingest.hash_to(position - position % CHUNK_SIZE)
        if position < size:
            raise SourceUnavailable(f"{job.file.path} ended after {position} of {size} bytes")
        if size % CHUNK_SIZE:
            sums.append(str(hasher.hexdigest()))
        return sums

    # -- trying again -----------------------------------------------------------------------------------------------

    def _again(self, job: Job, problem: SourceUnavailable | None, tries: int) -> None:
        """Wait before the next try of a chunk, or give up."""
        problem = problem or SourceUnavailable(f"{job.file.path} was cut off", hint="run it again")
        with self._lock:
            self._failures += 1
            spent = self._failures > self._budget
        if spent or tries >= TRIES:
            raise problem
        self._pause(problem, tries)

    def _pause(self, problem: SourceUnavailable, tries: int) -> None:
        import random

        # Full jitter, so that the chunks of many processes do not come back together.
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2**tries) * random.random()  # noqa: S311
        if self._stop.wait(max(delay, problem.retry_after or 0.0)):
            raise _Stopped


class _Counter:
    """Bytes counted for one try of one file, so that they can be taken back."""

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count
        self._lock = Lock()
        self._sum = 0

    def add(self, size: int) -> None:
        with self._lock:
            self._sum += size
        self._count(size)

    def undo(self) -> None:
        self._count(-self._sum)
        self._sum = 0


class _FirstError:
    """The failure that ended a file; what follows from it is noise."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.error: BaseException = _Stopped()
        self._set = False

    def set(self, error: BaseException) -> None:
        with self._lock:
            if not self._set or isinstance(self.error, _Stopped):
                self.error = error
            self._set = True

    def is_set(self) -> bool:
        return self._set


def _check_room(job: Job, position: int, stop: int) -> None:
    if position > stop:
        raise SourceCorrupt(f"{job.file.path} has more bytes than announced", tier=job.tier)


def _wrong_bytes(job: Job, actual: Digest) -> ModelStoreError:
    message = f"{job.file.path} has {actual}, but {job.expected} was expected"
    if job.tier is not None:
        return BlobCorrupt(message, tier=job.tier, op="read")
    return SourceCorrupt(message, hint="check the pin, or ask who publishes it")
