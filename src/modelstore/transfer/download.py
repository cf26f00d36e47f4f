"""The engine: brings many files into a tier, as many ranges at once as help, and hashes behind them on every core."""

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import replace
from functools import partial
from threading import Event

from modelstore.digest import CHUNK_SIZE, Digest
from modelstore.errors import BlobCorrupt, Cancelled, NoSpace, SourceCorrupt, SourceUnavailable
from modelstore.progress import Progress, ProgressUpdate, human_size
from modelstore.sources.base import RangesIgnored
from modelstore.tiers.base import SupportsFreeSpace, SupportsResume, Tier
from modelstore.transfer import limits
from modelstore.transfer.effort import Effort
from modelstore.transfer.files import preload
from modelstore.transfer.job import Brought, Job, RangeReader
from modelstore.transfer.lanes import Lanes
from modelstore.transfer.machine import cores, fits_in_memory
from modelstore.transfer.pace import Pace
from modelstore.transfer.plan import plan_chunks
from modelstore.transfer.reading import FileReading

__all__ = ["Brought", "Job", "RangeReader", "download"]


def download(
    jobs: Sequence[Job],
    tier: Tier,
    *,
    connections: int | None = None,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> list[Brought]:
    """Bring every job's blob into ``tier``; what came of each, in the order of the jobs.

    At most ``connections`` ranges are read at once, or as many as help; as many files of several chunks as there are
    cores are open, so that each core hashes one. ``progress`` is called from this thread. Raises the first failure, or
    ``Cancelled`` once ``cancel`` is set; blobs that were complete by then stay, and what was journalled of others.
    """
    check_space(jobs, tier)
    return _Engine(jobs, tier, connections, cancel, progress).run()


def check_space(jobs: Sequence[Job], tier: Tier) -> None:
    """Refuse to begin what cannot end. Raises ``NoSpace``."""
    if not isinstance(tier, SupportsFreeSpace):
        return
    needed = sum(job.file.size for job in jobs)
    known = [job for job in jobs if job.identity and job.file.ranges and job.file.size > CHUNK_SIZE]
    if isinstance(tier, SupportsResume):
        needed -= sum(tier.resumable(job.identity, job.file.size) for job in known if job.identity)
    if tier.free_bytes() >= needed:
        return
    tier.reclaim([job.identity for job in known if job.identity])
    if (free := tier.free_bytes()) < needed:
        raise NoSpace(
            f"{human_size(needed)} are needed and {human_size(free)} are free",
            tier=tier.name,
            op="fetch",
            hint="free some space, or use another tier",
        )


class _Engine:
    def __init__(
        self, jobs: Sequence[Job], tier: Tier, connections: int | None, cancel: Event | None, progress: Progress | None
    ) -> None:
        self._jobs = [_in_order(job) for job in jobs]
        self._tier = tier
        self._cancel = cancel
        self._progress = progress
        self._total = sum(job.file.size for job in jobs)
        self._keep_cache = fits_in_memory(self._total)
        preload()
        self._files = Lanes(cores(), "modelstore-file")
        self._lanes = Lanes(connections or limits.FIRST_CONNECTIONS)
        self._pace = Pace(self._lanes, connections or limits.MOST_CONNECTIONS)
        self._effort = Effort(self._lanes, self._pace, sum(len(plan_chunks(job.file.size)) for job in jobs))

    def run(self) -> list[Brought]:
        futures: dict[int, Future[Brought]] = {}
        # What comes in one piece is a task like a chunk of a large file: read, hashed and published by one thread.
        whole: list[int] = []
        large: list[int] = []
        for number, job in enumerate(self._jobs):
            (whole if job.file.size <= CHUNK_SIZE or not job.file.ranges else large).append(number)
        try:
            for numbers, lanes in ((large, self._files), (whole, self._lanes)):
                tasks = [partial(self._bring, self._jobs[number]) for number in numbers]
                futures.update(zip(numbers, lanes.submit(tasks), strict=True))
            self._watch(futures.values())
        except BaseException as error:
            self._end(futures.values(), error)
            raise
        finally:
            self._files.close()
            self._lanes.close()
        return [futures[number].result() for number in range(len(self._jobs))]

    def _end(self, futures: Iterable["Future[Brought]"], error: BaseException) -> None:
        """Have all threads stop, and staged files closed, before this returns: at least those that can be stopped."""
        self._effort.keep = not isinstance(error, NoSpace)  # a full disk is everybody's: give back what was taken
        self._effort.stop()
        for job in self._jobs:
            job.reader.close()
        self._files.close()
        self._lanes.close()
        wait(futures, timeout=limits.STOP_SECONDS)

    def _watch(self, futures: Iterable["Future[Brought]"]) -> None:
        """Wait, report and listen, in the caller's thread."""
        pending = set(futures)
        while pending:
            if self._cancel is not None and self._cancel.is_set():
                raise Cancelled("the fetch was cancelled")
            done, pending = wait(pending, timeout=limits.REPORT_SECONDS, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            if self._effort.failure:
                raise self._effort.failure
            self._pace.tick(time.monotonic(), self._effort.bytes - self._effort.resumed)
            self._report(done=False)
        self._report(done=True)

    def _report(self, *, done: bool) -> None:
        if self._progress is not None:
            done_bytes, resumed, files = self._effort.state()
            self._progress(ProgressUpdate(done_bytes, self._total, files, len(self._jobs), done, resumed))

    def _bring(self, job: Job) -> Brought:
        """One file, in a worker's thread or one of its own; in one stream if its server has no ranges after all."""
        tries = 0
        wrong: Digest | None = None
        while True:
            asked = time.monotonic()
            reading = FileReading(job, self._tier, self._lanes, self._effort, keep_cache=self._keep_cache)
            try:
                brought = reading.run()
            except RangesIgnored:
                job = replace(job, file=replace(job.file, ranges=False))
            except SourceUnavailable as error:
                # A stream cannot go on in the middle; ranges have been tried again chunk by chunk already.
                if job.file.ranges or not error.retryable:
                    raise
                tries += 1
                self._effort.pause(error, tries, asked, reading.over)
            except (SourceCorrupt, BlobCorrupt):
                # What an earlier attempt left may be what is wrong: without it, once.
                if not (job.identity and reading.counter.resumed):
                    raise
                job, wrong = replace(job, identity=None), job.identity
            else:
                if wrong and isinstance(self._tier, SupportsResume):
                    self._tier.forget(wrong)
                self._effort.file_done()
                return brought
            reading.counter.undo()


def _in_order(job: Job) -> Job:
    """Git's SHA-1 goes over the bytes in their order: a large file is read as a stream if it is checked by that."""
    if job.file.git_sha1 and job.file.size > CHUNK_SIZE:
        return replace(job, file=replace(job.file, ranges=False))
    return job
