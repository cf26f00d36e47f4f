"""Looking after what is stored: verify, repair, remove."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress

from modelstore.digest import Digest
from modelstore.errors import (
    BlobCorrupt,
    BlobNotFound,
    LockTimeout,
    ModelStoreError,
    NotCached,
    StoreError,
    TierUnavailable,
)
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
from modelstore.transfer.tree import LayoutRecord, find_damage, is_untouched, sweep_siblings, withdraw

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
            for tier in self._tiers:
                _lay_out_again(tier, entry.key)
        except ModelStoreError as error:
            logger.warning("%s could not be repaired: %s", entry.ref.source, error)
            return
        by_name = {tier.name: tier for tier in self._tiers}
        report.repaired.extend(damage for damage in damaged if _is_sound(by_name[damage.where], damage))

    # -- remove -----------------------------------------------------------------------------------------------------

    def remove(self, names: Sequence[str | os.PathLike[str]]) -> tuple[Entry, ...]:
        """See :meth:`modelstore.store.Store.remove`."""
        entries = tuple(self.entry(name) for name in names)
        for entry in entries:
            holders = [tier for tier in self._tiers if tier.read_ref(entry.key)]
            removable = [tier for tier in holders if isinstance(tier, SupportsDelete) and tier.writable]
            for tier in removable:
                _remove(tier, entry.key)
            if not removable:
                raise TierUnavailable(
                    f"{entry.ref.source} cannot be removed: it cannot be written",
                    tier=", ".join(tier.name for tier in holders),
                    op="remove",
                    retryable=False,
                )
        return entries


def set_aside_damage(manifest: Manifest, tier: VerifiableTier) -> bool:
    """Hash a model's blobs and laid-out files, and put wrong blobs into quarantine.

    Returns whether something has to be fetched again, or is wrong where it cannot be put right.
    """
    report = VerifyReport()
    for digest in manifest.blobs:
        _verify_blob(tier, digest, None, report)
    wrong = bool(report.damaged)
    if isinstance(tier, SupportsLayouts):
        _verify_layouts(tier, manifest, None, report)
    return wrong or (bool(report.damaged) and not tier.writable)


def _verify_tier(tier: VerifiableTier, entries: Iterable[Entry], report: VerifyReport, *, everything: bool) -> None:
    seen: set[Digest] = set()
    for entry in entries:
        # Its own idea of the model: a slower tier may hold an older version.
        ref = tier.read_ref(entry.key)
        if ref is None:
            continue
        manifest = read_manifest(tier, ref.manifest)
        for digest in (ref.manifest, *(manifest.blobs if manifest else ())):
            if digest not in seen:
                seen.add(digest)
                _verify_blob(tier, digest, entry.key, report)
        if isinstance(tier, SupportsLayouts) and manifest:
            _verify_layouts(tier, manifest, entry.key, report)
    for info in list(tier.walk()) if everything else ():
        if info.digest not in seen:
            _verify_blob(tier, info.digest, None, report)


def _verify_blob(tier: VerifiableTier, digest: Digest, model: CacheKey | None, report: VerifyReport) -> None:
    report.checked += 1
    try:
        tier.verify(digest)
    except (BlobCorrupt, BlobNotFound, TierUnavailable) as error:
        if isinstance(error, BlobNotFound) and (model is None or tier.read_ref(model) is None):
            return  # removed while this went on
        logger.warning("%s", error)
        report.damaged.append(Damage(str(digest), tier.name, model))
        if isinstance(error, BlobCorrupt) and tier.writable:
            with suppress(BlobNotFound):
                tier.quarantine(digest)


def _verify_layouts(tier: LocalTier, manifest: Manifest, model: CacheKey | None, report: VerifyReport) -> None:
    for record in _records(tier, manifest):
        sweep_siblings(record.target)
        report.checked += len(manifest.files)
        found = find_damage(record, manifest.files, tier)
        if found:
            tier.write_layout(record.target, found.to_json())
            report.damaged.append(Damage(record.target, tier.name, model))


def _lay_out_again(tier: Tier, key: CacheKey) -> None:
    ref = tier.read_ref(key)
    manifest = read_manifest(tier, ref.manifest) if ref else None
    if manifest and isinstance(tier, SupportsLayouts):
        for record in _records(tier, manifest):
            if record.damaged:
                make_layout(record.layout).materialize(manifest, tier, record.target)


def _is_sound(tier: Tier, damage: Damage) -> bool:
    """Whether what was damaged is not so any more."""
    if not damage.is_blob and isinstance(tier, SupportsLayouts):
        record = LayoutRecord.from_json(tier.read_layout(damage.what))
        return record is not None and not record.damaged
    try:
        if isinstance(tier, SupportsVerify):
            tier.verify(Digest.parse(damage.what))
            return True
    except StoreError as error:
        logger.warning("%s", error)
    return False


def _remove(tier: DeletableTier, key: CacheKey) -> None:
    with ExitStack() as stack:
        if isinstance(tier, SupportsLayouts) and not stack.enter_context(
            single_flight(tier.lock_path(key), _LOCK_SECONDS)
        ):
            raise LockTimeout(
                f"the model {key.short} is being fetched by another process", tier=tier.name, hint="try again later"
            )
        ref = tier.read_ref(key)
        if ref is None:
            return
        manifest = read_manifest(tier, ref.manifest)
        # The ref first: from here on the model is not there, and what is left is only space.
        tier.delete_ref(key)
        if isinstance(tier, SupportsLayouts):
            _withdraw_default(tier, key)
        kept = _kept(tier)
        for digest in {ref.manifest, *(manifest.blobs if manifest else ())} - kept if kept is not None else ():
            tier.delete(digest)


def _withdraw_default(tier: SupportsLayouts, key: CacheKey) -> None:
    """Remove the default directory, if there is nothing in it but what was put there."""
    target = tier.model_path(key)
    record = LayoutRecord.from_json(tier.read_layout(target))
    if record and is_untouched(record):
        withdraw(target)
        tier.write_layout(target, None)
    elif os.path.lexists(target):
        logger.warning("%s holds something else too, and stays", target)


def _records(tier: SupportsLayouts, manifest: Manifest) -> Iterator[LayoutRecord]:
    """Where a model was laid out, as far as that is still so."""
    for raw in list(tier.layouts()):
        record = LayoutRecord.from_json(raw)
        if record and record.manifest == manifest.digest and os.path.isdir(record.target):
            yield record


def _kept(tier: DeletableTier) -> set[Digest] | None:
    """The blobs that refs and named manifests need; None if that cannot be told, and then all are kept."""
    kept: set[Digest] = set()
    try:
        for _, ref in tier.refs():
            manifest = read_manifest(tier, ref.manifest)
            if manifest is None:
                raise ValueError(f"the manifest {ref.manifest} is gone")
            kept |= {ref.manifest, *manifest.blobs}
        for raw in tier.named_manifests():
            manifest = Manifest.parse(raw)
            kept |= {manifest.digest, *manifest.blobs}
    except (ValueError, StoreError) as error:
        logger.warning("tier %s: it cannot be told which blobs are needed, and all are kept: %s", tier.name, error)
        return None
    return kept
