"""The way in: what the fastest writable tier lacks is brought there, from the nearest place that has it."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Final

from modelstore.digest import CHUNK_SIZE, ChunkSums, Digest
from modelstore.errors import Cancelled, SourceChanged, SourceCorrupt, SourceUnavailable, StoreError
from modelstore.manifest import FileEntry, Manifest, Ref
from modelstore.model import Found
from modelstore.progress import Progress
from modelstore.source_url import SourceURL
from modelstore.sources.base import Resolved, Source, SourceFile
from modelstore.tiers.base import SupportsResume, Tier
from modelstore.transfer.asking import ask
from modelstore.transfer.download import Job, download

__all__ = ["Bringer", "now", "put"]

#: Seconds between the tries to ask a source; longer if it says so.
RESOLVE_DELAYS: Final = (0.25, 0.5, 0.75)

logger = logging.getLogger(__name__)


def now() -> str:
    """The time, as refs hold it (RFC 3339, UTC, seconds)."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def put(tier: Tier, data: bytes) -> None:
    """Store a small blob that is in memory."""
    digest = Digest.of(data)
    if tier.missing([digest]):
        with tier.ingest(len(data), digest) as ingest:
            ingest.write_at(0, data)
            ingest.commit(ChunkSums.of([data]))


class _TierReader:
    """Lets the engine read a blob of a slower tier as it reads a source."""

    def __init__(self, tier: Tier) -> None:
        self._tier = tier

    def open_range(self, file: SourceFile, start: int, stop: int) -> Iterator[bytes]:
        if file.digest is None:
            raise ValueError(f"{file.path} has no digest to be read by")
        return self._tier.open_range(file.digest, start, stop)

    def close(self) -> None:
        """Nothing is kept open."""


class Bringer:
    """Brings one model into ``home``. ``bytes`` counts where its bytes came from."""

    def __init__(
        self,
        url: SourceURL,
        home: Tier,
        others: Sequence[Tier],
        *,
        connections: int | None,
        full: bool,
        progress: Progress | None,
        cancel: Event | None,
    ) -> None:
        self._url = url
        self._home = home
        self._others = list(others)
        self._connections = connections
        self._full = full
        self._progress = progress
        self._cancel = cancel
        self.bytes: dict[str, int] = {"origin": 0, "reused": 0, **{tier.name: 0 for tier in (home, *others)}}

    def from_tiers(self, found: Found) -> bool:
        """Copy up what ``home`` lacks of a known model; False if some of it is in no tier."""
        blobs = {found.manifest.digest: len(found.manifest.raw), **found.manifest.blobs}
        files = {digest: SourceFile(str(digest), size, digest) for digest, size in blobs.items()}
        while (places := self._locate(self._home.missing(files))) is not None:
            jobs = [self._tier_job(files[digest], digest, tier) for digest, tier in places.items()]
            if self._run(jobs) is not None:
                self.bytes["reused"] += sum(blobs.values()) - sum(job.file.size for job in jobs)
                if self._home.read_ref(self._url.key) != found.ref:
                    self._home.write_ref(self._url.key, found.ref)
                return True
        return False

    def from_source(
        self,
        source: Source,
        known: Found | None,
        *,
        remembered: Digest | None,
        refresh: bool,
        check: Callable[[Mapping[str, int]], None],
    ) -> Found:
        """Ask the source, fetch what no tier has, publish blobs → manifest → ref.

        What ``known`` remembers, and the manifest digest ``remembered`` of a ref whose manifest may be gone, must still
        be so, unless ``refresh``. ``check`` is given the sizes of the files by path before a byte is fetched, and may
        raise. Raises ``SourceChanged``, ``SourceCorrupt``.
        """
        resolved = self._resolve(source)
        self._check_listing(resolved)
        if known and known.manifest.digest == remembered and not refresh and _differs(resolved, known):
            raise self._changed()
        if resolved.manifest:
            self._check_manifest(resolved.manifest, None if refresh else remembered)
        check({file.path: file.size for file in resolved.files})
        expected = self._expect(resolved, known, refresh=refresh)
        try:
            digests, brought = self._bring(source, resolved, expected)
        except SourceCorrupt as error:
            if known is None or refresh or not _moved(resolved, known):
                raise
            raise self._changed() from error
        manifest = resolved.manifest
        if manifest is None:
            entries = [FileEntry(file.path, digests[file.path], file.size) for file in resolved.files]
            manifest, config = Manifest.build(entries)
            if resolved.tree or not self._url.pin:
                self._check_manifest(manifest, None if refresh else remembered)
            put(self._home, config)
        put(self._home, manifest.raw)
        ref = self._ref(resolved, manifest, known, brought)
        self._home.write_ref(self._url.key, ref)
        self._forget(resolved)
        return Found(ref, manifest)

    def _check_manifest(self, manifest: Manifest, remembered: Digest | None) -> None:
        """Refuse a manifest that is not the pinned one, or if there is no pin, not the one that is remembered."""
        pin = self._url.pin
        if pin and manifest.digest != pin:
            raise SourceCorrupt(
                f"the manifest of {self._url} is {manifest.digest}, but {pin} was expected", hint="check the pin"
            )
        if remembered and not pin and manifest.digest != remembered:
            raise self._changed()

    def _check_listing(self, resolved: Resolved) -> None:
        """Refuse files that no manifest can list before any is fetched."""
        if resolved.manifest:
            return
        sizes: dict[Digest, int] = {}
        for file in resolved.files:
            if file.digest and sizes.setdefault(file.digest, file.size) != file.size:
                raise SourceCorrupt(f"the source lists {file.digest} with two sizes")
        try:  # with digests that are as long as the right ones
            Manifest.build(FileEntry(file.path, Digest.of(file.path.encode()), file.size) for file in resolved.files)
        except ValueError as error:
            raise SourceCorrupt(f"the source lists files that cannot be stored: {error}") from error

    def _resolve(self, source: Source) -> Resolved:
        """Ask the source, again after a moment if it may be there by then."""
        for delay in (*RESOLVE_DELAYS, None):
            try:
                return ask(partial(source.resolve, self._url), self._url.text, self._cancel)
            except SourceUnavailable as error:
                if not error.retryable or delay is None:
                    raise
                if (self._cancel or Event()).wait(max(delay, error.retry_after or 0.0)):
                    raise Cancelled("the fetch was cancelled while it asked the source") from error
        raise AssertionError("the last try returns or raises")

    # -- what is expected -------------------------------------------------------------------------------------------

    def _expect(self, resolved: Resolved, known: Found | None, *, refresh: bool) -> dict[str, Digest]:
        """The digests that are known beforehand, by path."""
        expected = {file.path: file.digest for file in (*resolved.files, *resolved.others) if file.digest}
        remembered = known.manifest.files if known else {}
        for file in resolved.files:
            entry = remembered.get(file.path)
            if known is None or entry is None or file.path in expected:
                continue
            same = file.validator is not None and file.validator == known.ref.validators.get(file.path)
            if not refresh or (same and entry.size == file.size):
                expected[file.path] = entry.digest
        if self._url.pin and not resolved.tree and not resolved.manifest:
            expected[resolved.files[0].path] = self._url.pin
        return expected

    def _changed(self) -> SourceChanged:
        return SourceChanged(
            f"{self._url} no longer holds what was first fetched from it",
            hint="--refresh accepts what it has now",
        )

    def _ref(self, resolved: Resolved, manifest: Manifest, known: Found | None, brought: Collection[str]) -> Ref:
        """The ref to write. A validator goes with a digest only if the source has been seen to have them together."""
        time_now = now()
        validators = {
            file.path: file.validator
            for file in resolved.files
            if file.validator
            and (file.path in brought or file.digest or _remembers(known, file, manifest.files[file.path].digest))
        }
        ref = Ref(self._url.text, manifest.digest, resolved.revision, validators, time_now, time_now)
        if known and known.manifest.digest == manifest.digest:
            return replace(ref, fetched=known.ref.fetched)
        return ref

    # -- bringing it ------------------------------------------------------------------------------------------------

    def _bring(
        self, source: Source, resolved: Resolved, expected: Mapping[str, Digest]
    ) -> tuple[dict[str, Digest], set[str]]:
        """Have every file's blob in ``home``; the digests by path, and the paths that were read from the source."""
        finished = self._finished(resolved, expected)
        expected = {**expected, **finished}
        brought: list[Digest] | None = None
        while brought is None:
            jobs = self._plan(source, resolved, expected)
            brought = self._run(list(jobs.values()))
        digests = dict(zip(jobs, brought, strict=True))
        total = sum(file.size for file in (*resolved.files, *resolved.others))
        self.bytes["reused"] += total - sum(job.file.size for job in jobs.values())
        read = {job.file.path for job in jobs.values() if job.tier is None} | finished.keys()
        return {file.path: expected.get(file.path) or digests[file.path] for file in resolved.files}, read

    def _finished(self, resolved: Resolved, expected: Mapping[str, Digest]) -> dict[str, Digest]:
        """The files of unknown digest that an attempt which was killed had brought as a whole."""
        found: dict[str, Digest] = {}
        if isinstance(self._home, SupportsResume):
            for file in resolved.files:
                identity = self._identity(file)
                if identity and file.size > CHUNK_SIZE and file.path not in expected:
                    digest = self._home.finished(identity, file.size)
                    if digest and not self._home.missing([digest]):
                        found[file.path] = digest
        return found

    def _forget(self, resolved: Resolved) -> None:
        """Drop what was remembered for ``_finished``."""
        for file in resolved.files if isinstance(self._home, SupportsResume) else ():
            identity = self._identity(file) if file.size > CHUNK_SIZE else None
            if identity and isinstance(self._home, SupportsResume):
                self._home.forget(identity)

    def _plan(self, source: Source, resolved: Resolved, expected: Mapping[str, Digest]) -> dict[str | Digest, Job]:
        """What has to be brought, and from where: by digest, or by path where that is not known yet."""
        missing = self._home.missing(set(expected.values()))
        places = self._locate(missing, partly=True) or {}
        jobs: dict[str | Digest, Job] = {}
        for file in (*resolved.files, *resolved.others):
            digest = expected.get(file.path)
            if digest is None:
                jobs[file.path] = Job(file, source, identity=self._identity(file))
            elif digest in places:
                jobs[digest] = self._tier_job(SourceFile(file.path, file.size, digest), digest, places[digest])
            elif digest in missing:
                jobs[digest] = Job(file, source, digest, full=self._full, identity=digest)
        return jobs

    def _tier_job(self, file: SourceFile, digest: Digest, tier: Tier) -> Job:
        """A copy from a slower tier, checked by the chunk sums that were recorded there."""
        try:
            sums = tier.read_sums(digest)
        except StoreError:
            sums = None  # then SHA-256 is run
        return Job(file, _TierReader(tier), digest, tier.name, sums, self._full, identity=digest)

    def _identity(self, file: SourceFile) -> Digest | None:
        """What an attempt that was killed can be found by, if the source says by what to know the bytes again."""
        if file.validator is None:
            return None
        return Digest.of("\n".join((str(self._url.key), file.path, file.validator)).encode())

    def _locate(self, digests: Iterable[Digest], *, partly: bool = False) -> dict[Digest, Tier] | None:
        """For each blob the first other tier that has it; None if some is nowhere, unless ``partly``."""
        left = set(digests)
        places: dict[Digest, Tier] = {}
        for tier in list(self._others):
            if not left:
                break
            try:
                here = left - tier.missing(left)
            except StoreError as error:
                self._pass_over(tier, error)
                continue
            places.update(dict.fromkeys(here, tier))
            left -= here
        return places if partly or not left else None

    def _run(self, jobs: list[Job]) -> list[Digest] | None:
        """Run the engine; None if a slower tier failed in the middle and was passed over: plan again."""
        if not jobs:
            return []
        try:
            brought = download(
                jobs, self._home, connections=self._connections, cancel=self._cancel, progress=self._progress
            )
        except StoreError as error:
            failed = next((tier for tier in self._others if tier.name == error.tier), None)
            if failed is None:
                raise
            self._pass_over(failed, error)
            return None
        for job, blob in zip(jobs, brought, strict=True):
            self.bytes[job.tier or "origin"] += job.file.size - blob.resumed
            self.bytes["reused"] += blob.resumed
        return [blob.digest for blob in brought]

    def _pass_over(self, tier: Tier, error: StoreError) -> None:
        logger.warning("%s; passing it over", error)
        self._others.remove(tier)


def _differs(resolved: Resolved, known: Found) -> bool:
    """Whether the source's listing alone shows that it holds something else now."""
    entries = known.manifest.files
    if {file.path for file in resolved.files} != entries.keys():
        return True
    return any(
        file.size != entries[file.path].size or (file.digest and file.digest != entries[file.path].digest)
        for file in resolved.files
    )


def _remembers(known: Found | None, file: SourceFile, digest: Digest) -> bool:
    """Whether a file's validator was seen with these bytes before."""
    entry = known.manifest.files.get(file.path) if known else None
    return (
        known is not None
        and entry is not None
        and (entry.digest == digest and known.ref.validators.get(file.path) == file.validator)
    )


def _moved(resolved: Resolved, known: Found) -> bool:
    """Whether the source's own validators say that it holds something else now."""
    return any(file.validator != known.ref.validators.get(file.path) for file in resolved.files)
