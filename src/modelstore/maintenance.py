"""Looking after what is stored: verify, repair, remove."""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack

from modelstore.digest import Digest
from modelstore.errors import BlobCorrupt, BlobNotFound, LockTimeout, ModelStoreError, NotCached
from modelstore.locking import single_flight
from modelstore.manifest import Manifest
from modelstore.model import Damage, Entry, VerifyReport
from modelstore.plugins import make_layout
from modelstore.progress import Progress
from modelstore.source_url import CacheKey, SourceURL
from modelstore.tiering import read_manifest
from modelstore.tiers.base import (
    DeletableTier,
    LocalTier,
    SupportsDelete,
    SupportsLayouts,
    SupportsVerify,
    Tier,
    VerifiableTier,
)
from modelstore.transfer.tree import LayoutRecord, find_damage

__all__ = ["Maintenance", "set_aside_damage"]

_KEY = re.compile(r"[0-9a-f]{16,64}")
_LOCK_SECONDS = 2.0

logger = logging.getLogger(__name__)


class Maintenance:
    """The verbs that go over what some tiers hold. ``refetch`` brings a model's missing blobs from its source."""

    def __init__(
        self,
        tiers: Sequence[Tier],
        entries: Sequence[Entry],
        refetch: Callable[[str, Progress | None], None],
    ) -> None:
        self._tiers = tiers
        self._entries = entries
        self._refetch = refetch

    def entry(self, name: str | os.PathLike[str]) -> Entry:
        """The model of a source URL, or of a key by its first 16 or more digits."""
        text = os.fspath(name)
        if _KEY.fullmatch(text):
            shown = text
            found = [entry for entry in self._entries if entry.key.startswith(text)]
        else:
            url = SourceURL.parse(text)
            shown = url.text
            found = [entry for entry in self._entries if entry.key == url.key]
        if not found:
            raise NotCached(f"{shown} is not in any tier", hint="see 'modelstore list'")
        return found[0]

    # -- verify -----------------------------------------------------------------------------------------------------

    def verify(
        self, names: Sequence[str | os.PathLike[str]], *, repair: bool, progress: Progress | None
    ) -> VerifyReport:
        """See :meth:`modelstore.store.Store.verify`."""
        entries = [self.entry(name) for name in names] or list(self._entries)
        asked = {self.entry(name).key: os.fspath(name) for name in names if not _KEY.fullmatch(os.fspath(name))}
        report = VerifyReport({entry.key: entry.ref.source for entry in entries})
        for tier in self._tiers:
            if isinstance(tier, SupportsVerify):
                _verify_tier(tier, entries, report, everything=not names)
        if repair:
            for entry in entries:
                self._repair(entry, asked.get(entry.key, entry.ref.source), report, progress)
        return report

    def _repair(self, entry: Entry, source: str, report: VerifyReport, progress: Progress | None) -> None:
        damaged = [damage for damage in report.damaged if damage.model == entry.key]
        if not damaged:
            return
        try:
            self._refetch(source, progress)
            self._lay_out_again(entry)
        except ModelStoreError as error:
            logger.warning("%s could not be repaired: %s", entry.ref.source, error)
            return
        report.repaired.extend(damaged)

    def _lay_out_again(self, entry: Entry) -> None:
        for tier in self._tiers:
            manifest = read_manifest(tier, entry.ref.manifest)
            if manifest is None or not isinstance(tier, SupportsLayouts):
                continue
            for record in _records(tier, manifest):
                if record.damaged:
                    make_layout(record.layout).materialize(manifest, tier, record.target)

    # -- remove -----------------------------------------------------------------------------------------------------

    def remove(self, names: Sequence[str | os.PathLike[str]]) -> tuple[Entry, ...]:
        entries = tuple(self.entry(name) for name in names)
        for entry in entries:
            for tier in self._tiers:
                if isinstance(tier, SupportsDelete) and tier.writable and tier.read_ref(entry.key):
                    _remove(tier, entry)
        return entries


def set_aside_damage(manifest: Manifest, tier: VerifiableTier) -> bool:
    """Hash a model's blobs and laid-out files; put wrong blobs into quarantine. Whether any blob was wrong."""
    report = VerifyReport()
    for digest in manifest.blobs:
        _verify_blob(tier, digest, None, report)
    wrong = bool(report.damaged)
    if isinstance(tier, SupportsLayouts):
        _verify_layouts(tier, manifest, None, report)
    return wrong


def _verify_tier(tier: VerifiableTier, entries: Iterable[Entry], report: VerifyReport, *, everything: bool) -> None:
    seen: set[Digest] = set()
    for entry in entries:
        if tier.read_ref(entry.key) is None:
            continue
        for digest in _blobs(entry):
            if digest not in seen:
                seen.add(digest)
                _verify_blob(tier, digest, entry.key, report)
        if isinstance(tier, SupportsLayouts) and entry.manifest:
            _verify_layouts(tier, entry.manifest, entry.key, report)
    for info in list(tier.walk()) if everything else ():
        if info.digest not in seen:
            _verify_blob(tier, info.digest, None, report)


def _verify_blob(tier: VerifiableTier, digest: Digest, model: CacheKey | None, report: VerifyReport) -> None:
    report.checked += 1
    try:
        tier.verify(digest)
    except (BlobCorrupt, BlobNotFound) as error:
        logger.warning("%s", error)
        report.damaged.append(Damage(str(digest), tier.name, model))
        if isinstance(error, BlobCorrupt) and tier.writable:
            tier.quarantine(digest)


def _verify_layouts(tier: LocalTier, manifest: Manifest, model: CacheKey | None, report: VerifyReport) -> None:
    for record in _records(tier, manifest):
        report.checked += len(manifest.files)
        found = find_damage(record, manifest.files, tier)
        if found:
            tier.write_layout(record.target, found.to_json())
            report.damaged.append(Damage(record.target, tier.name, model))


def _remove(tier: DeletableTier, entry: Entry) -> None:
    with ExitStack() as stack:
        if isinstance(tier, SupportsLayouts):
            path = tier.lock_path(entry.key)
            if not stack.enter_context(single_flight(path, _LOCK_SECONDS)):
                raise LockTimeout(
                    f"{entry.ref.source} is being fetched by another process", tier=tier.name, hint="try again later"
                )
        # The ref first: from here on the model is not there, and what is left is only space.
        tier.delete_ref(entry.key)
        if isinstance(tier, SupportsLayouts):
            target = tier.model_path(entry.key)
            shutil.rmtree(target, ignore_errors=True)
            tier.write_layout(target, None)
        kept = _kept(tier)
        for digest in set(_blobs(entry)) - kept if kept is not None else ():
            tier.delete(digest)


def _blobs(entry: Entry) -> Iterator[Digest]:
    yield entry.ref.manifest
    if entry.manifest:
        yield from entry.manifest.blobs


def _records(tier: SupportsLayouts, manifest: Manifest) -> Iterator[LayoutRecord]:
    """Where a model was laid out, as far as that is still so."""
    for raw in list(tier.layouts()):
        record = LayoutRecord.from_json(raw)
        if record and record.manifest == manifest.digest and os.path.isdir(record.target):
            yield record


def _kept(tier: DeletableTier) -> set[Digest] | None:
    """The blobs that refs and named manifests need; None if that cannot be told, and then all are kept."""
    kept: set[Digest] = set()
    for _, ref in tier.refs():
        manifest = read_manifest(tier, ref.manifest)
        if manifest is None:
            return None
        kept |= {ref.manifest, *manifest.blobs}
    for raw in tier.named_manifests():
        try:
            manifest = Manifest.parse(raw)
        except ValueError:
            logger.warning("tier %s: a file under manifests/ is not a manifest; keeping all blobs", tier.name)
            return None
        kept |= {manifest.digest, *manifest.blobs}
    return kept
