"""One file: its chunks read in parallel into a staged file, hashed behind, published."""

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from functools import partial
from threading import Event, Lock

from modelstore.digest import CHUNK_SIZE, ChunkSums, chunk_hasher
from modelstore.errors import (
    BlobCorrupt,
    SourceCorrupt,
    SourceNotFound,
    SourceUnauthorized,
    SourceUnavailable,
    StoreError,
)
from modelstore.sources.base import RangesIgnored, SourceFile
from modelstore.tiers.base import FileIngest, Ingest, SupportsResume, Tier
from modelstore.transfer.effort import Counter, Effort, Stopped
from modelstore.transfer.job import Brought, Job
from modelstore.transfer.lanes import Lanes
from modelstore.transfer.plan import Chunk, plan_chunks

__all__ = ["FileReading"]

#: A chunk that is wrong is read once more: then it is not the network.
_READS = 2


class FileReading:
    """One try at one file."""

    def __init__(self, job: Job, tier: Tier, lanes: Lanes, effort: Effort, *, keep_cache: bool) -> None:
        self._job = job
        self._tier = tier
        self._lanes = lanes
        self._effort = effort
        self._keep_cache = keep_cache
        self._failed = _FirstError()
        self._sums = job.known_sums
        self._file: FileIngest | None = None  # what is staged, if that is a file
        self._git = _git_hasher(job.file)
        self.counter = Counter(effort)
        self.over = self._failed.over

    def run(self) -> Brought:
        """Bring the file. Called in a thread that may hash meanwhile."""
        with self._effort.reading(self._failed.over), self._staged() as ingest:
            if not self._job.file.ranges:
                sums = self._read_stream(ingest)
            elif self._job.file.size > CHUNK_SIZE:
                sums = self._read_chunks(ingest)
            else:
                sums = [self._bring_chunk(ingest, chunk) for chunk in plan_chunks(self._job.file.size)]
            return self._finish(ingest, ChunkSums(self._job.file.size, tuple(sums)))

    def _finish(self, ingest: Ingest, sums: ChunkSums) -> Brought:
        job = self._job
        if self._git and (actual := self._git.hexdigest()) != job.file.git_sha1:
            raise job.wrong_bytes(job.file.path, f"git SHA-1 {actual}", job.file.git_sha1)
        if self._hashes:
            ingest.hash_to(job.file.size)
            if job.expected is not None and ingest.digest != job.expected:
                raise job.wrong_bytes(job.file.path, ingest.digest, job.expected)
        digest = ingest.commit(sums, None if self._hashes else job.expected)
        return Brought(digest, self.counter.resumed)

    @property
    def _hashes(self) -> bool:
        """Whether SHA-256 has to be run: chunk sums that were recorded with the digest stand for it."""
        return self._sums is None or self._job.full

    @contextmanager
    def _staged(self) -> Iterator[Ingest]:
        job = self._job
        size, expected = job.file.size, job.expected
        if not isinstance(self._tier, SupportsResume):
            with self._tier.ingest(size, expected) as ingest:
                yield ingest
            return
        # One chunk, or one stream, cannot be gone on with.
        identity = job.identity if job.file.ranges and size > CHUNK_SIZE else None
        with self._tier.resume(size, expected, identity, keep_cache=self._keep_cache) as file:
            self._file = file
            try:
                yield file
            except BaseException as error:
                if self._effort.keep and self._is_elsewhere(error):
                    file.keep()
                raise

    def _is_elsewhere(self, error: BaseException) -> bool:
        """Whether what was journalled is still good: not so with wrong bytes, a full disk or a broken one."""
        if isinstance(error, StoreError):
            theirs = self._job.tier is not None and error.tier == self._job.tier
            return theirs and (self._sums is not None or not isinstance(error, BlobCorrupt))
        return isinstance(error, (SourceUnavailable, SourceUnauthorized, SourceNotFound, Stopped, KeyboardInterrupt))

    # -- in ranges --------------------------------------------------------------------------------------------------

    def _read_chunks(self, ingest: Ingest) -> list[str]:
        """Read all chunks in parallel, and hash what has arrived without a gap."""
        plan = plan_chunks(self._job.file.size)
        futures: list[Future[str]] = []
        sums: list[str] = []
        try:
            futures = self._lanes.submit(partial(self._bring_chunk, ingest, chunk) for chunk in plan)
            for chunk, future in zip(plan, futures, strict=True):
                sums.append(self._result(future))
                if self._hashes:
                    ingest.hash_to(chunk.stop)
                self._settle(chunk.start, chunk.stop)
        except BaseException as error:  # noqa: BLE001  whatever it was, it is raised below
            self._failed.set(error)
            self._lanes.cancel(futures)
            wait(futures)  # nobody may write into the staged file after it was let go of
            raise self._failed.error  # noqa: B904  it has its own cause
        return sums

    def _result(self, future: "Future[str]") -> str:
        try:
            return future.result()
        except CancelledError:  # the pool was closed
            raise Stopped from None

    def _bring_chunk(self, ingest: Ingest, chunk: Chunk) -> str:
        """The XXH3-128 of a chunk, which is then staged: found there, or read."""
        try:
            return self._recall(chunk) or self._read_right(ingest, chunk)
        except BaseException as error:
            self._failed.set(error)
            if not isinstance(error, (Stopped, RangesIgnored, SourceCorrupt, BlobCorrupt)):
                self._effort.failure = error  # the others need not come to their end first
            raise

    def _recall(self, chunk: Chunk) -> str | None:
        found = self._file.recall(chunk.index, chunk.start, chunk.stop) if self._file else None
        if found is None or (self._sums and found != self._sums[chunk.index]):
            return None
        self.counter.add(chunk.stop - chunk.start, chunk.stop - chunk.start)
        return found

    def _read_right(self, ingest: Ingest, chunk: Chunk) -> str:
        for _ in range(_READS):
            actual = self._read_chunk(ingest, chunk)
            if self._sums is None or actual == self._sums[chunk.index]:
                if self._file:
                    self._file.record(chunk.index, actual)
                return actual
            self.counter.add(chunk.start - chunk.stop)
        what = f"chunk {chunk.index} of {self._job.file.path}"
        raise self._job.wrong_bytes(what, f"XXH3-128 {actual}", self._sums[chunk.index] if self._sums else None)

    def _read_chunk(self, ingest: Ingest, chunk: Chunk) -> str:
        """One chunk, begun again at the next missing byte as often as it helps."""
        job = self._job
        hasher = chunk_hasher()
        git = self._git = _git_hasher(job.file)
        position, tries = chunk.start, 0
        while position < chunk.stop:
            begun, others, asked = position, self._effort.bytes, time.monotonic()
            problem: SourceUnavailable | None = None
            try:
                for piece in job.reader.open_range(job.file, position, chunk.stop):
                    self._check(position + len(piece), chunk.stop)
                    ingest.write_at(position, piece)
                    hasher.update(piece)
                    if git:
                        git.update(piece)
                    position += len(piece)
                    self.counter.add(len(piece))
                    del piece  # before the next one is there
            except SourceUnavailable as error:
                if not error.retryable:
                    raise
                problem = error
            if position < chunk.stop:
                problem = problem or self._cut_off(position)
                tries = 1 if position > begun else tries + 1
                if problem.overloaded and self._effort.bytes > others:
                    tries = 0  # the server is busy with the rest of us
                self._effort.pause(problem, tries, asked, self._failed.over)
        return str(hasher.hexdigest())

    # -- in one stream ----------------------------------------------------------------------------------------------

    def _read_stream(self, ingest: Ingest) -> list[str]:
        """The whole file in one stream, hashed at each chunk border."""
        job, position = self._job, 0
        size = job.file.size
        sums: list[str] = []
        hasher = chunk_hasher()
        for piece in job.reader.open_range(job.file, 0, size) if size else ():
            self._check(position + len(piece), size)
            ingest.write_at(position, piece)
            if self._git:
                self._git.update(piece)
            self.counter.add(len(piece))
            border = CHUNK_SIZE - position % CHUNK_SIZE
            hasher.update(piece[:border])
            position += len(piece)
            if len(piece) >= border:
                sums.append(self._checked_sum(len(sums), hasher.hexdigest()))
                hasher = chunk_hasher()
                hasher.update(piece[border:])
                self._end_chunk(ingest, position - position % CHUNK_SIZE)
        if position < size:
            raise self._cut_off(position)
        if size % CHUNK_SIZE:
            sums.append(self._checked_sum(len(sums), hasher.hexdigest()))
        return sums

    def _end_chunk(self, ingest: Ingest, stop: int) -> None:
        if self._hashes:
            ingest.hash_to(stop)
        self._settle(stop - CHUNK_SIZE, stop)

    def _checked_sum(self, index: int, actual: str) -> str:
        if self._sums and self._sums[index] != actual:
            what = f"chunk {index} of {self._job.file.path}"
            raise self._job.wrong_bytes(what, f"XXH3-128 {actual}", self._sums[index])
        return actual

    def _settle(self, start: int, stop: int) -> None:
        if self._file:
            self._file.settle(start, stop)

    # -- both -------------------------------------------------------------------------------------------------------

    def _check(self, position: int, stop: int) -> None:
        if self._failed.over.is_set():
            raise Stopped
        if position > stop:
            raise SourceCorrupt(f"{self._job.file.path} has more bytes than announced", tier=self._job.tier)

    def _cut_off(self, position: int) -> SourceUnavailable:
        path, size = self._job.file.path, self._job.file.size
        return SourceUnavailable(f"{path} was cut off after {position} of {size} bytes", hint="run it again")


def _git_hasher(file: SourceFile) -> "hashlib._Hash | None":
    """What git names a blob by (gitformat-pack(5)), if the file is to be checked by that."""
    if file.git_sha1 is None:
        return None
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


class _FirstError:
    """The failure that ended a file; what follows from it is noise. ``over`` is set with it, or without one."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.error: BaseException = Stopped()
        self.over = Event()

    def set(self, error: BaseException) -> None:
        with self._lock:
            if isinstance(self.error, Stopped):
                self.error = error
            self.over.set()
