"""The ordered tiers of a store: which of them can be used, and which of them knows a model."""

import logging
import os
from collections.abc import Iterable, Iterator

from modelstore.config import TierConfig
from modelstore.digest import Digest
from modelstore.errors import BlobNotFound, ConfigError, LayoutError, StoreError, TierUnavailable
from modelstore.manifest import MAX_MANIFEST_SIZE, Manifest, Ref
from modelstore.model import Entry, Found
from modelstore.plugins import make_tier
from modelstore.source_url import CacheKey, SourceURL
from modelstore.tiers.base import LocalTier, SupportsLayouts, SupportsVerify, Tier

__all__ = ["Tiers", "read_manifest"]

logger = logging.getLogger(__name__)


class Tiers:
    """Tiers, fastest first. One that fails is reported once and passed over, as long as another is left."""

    def __init__(self, tiers: Iterable["str | os.PathLike[str] | TierConfig | Tier"]) -> None:
        self.all = tuple(map(_open, tiers))
        if not self.all or len({tier.name for tier in self.all}) < len(self.all):
            raise ConfigError("a store needs one tier or more, each with a name of its own")
        self._warned: set[str] = set()

    def usable(self) -> Iterator[Tier]:
        """The tiers that can be opened. If none can, their error is raised."""
        failures: list[StoreError] = []
        for tier in self.all:
            try:
                _ = tier.writable
            except StoreError as error:
                failures.append(error)
                if len(self.all) > 1:
                    self._warn(error)
            else:
                yield tier
        if len(failures) == len(self.all):
            raise _joined(failures)

    def home(self) -> Tier | None:
        """The fastest tier that can be written and that models can be laid out from, else one that can be written."""
        writable = [tier for tier in self.usable() if tier.writable]
        return next((tier for tier in writable if isinstance(tier, SupportsLayouts)), next(iter(writable), None))

    def place(self, found: Found | None) -> LocalTier | None:
        """The tier to lay a model out from: the one to write to, else one that has all of it."""
        home = self.home()
        if isinstance(home, SupportsLayouts):
            return home
        for tier in self.usable():
            if isinstance(tier, SupportsLayouts) and found and self._has_all(tier, found):
                return tier
        return None

    def _has_all(self, tier: Tier, found: Found) -> bool:
        try:
            return not tier.missing(found.manifest.blobs)
        except StoreError as error:
            self._warn(error)
            return False

    def find(self, url: SourceURL) -> Found | None:
        """The ref and manifest of a source URL in the first tier that has them, or None."""
        for ref in self.refs(url):
            if manifest := self._manifest(ref.manifest):
                return Found(ref, manifest)
        return None

    def refs(self, url: SourceURL) -> Iterator[Ref]:
        """What the tiers remember of a source URL, fastest first."""
        for tier in self.usable():
            try:
                ref = tier.read_ref(url.key)
            except StoreError as error:
                self._warn(error)
                continue
            if ref:
                yield ref

    def entries(self) -> tuple[Entry, ...]:
        """Every model that some tier knows, by source URL."""
        entries: dict[CacheKey, Entry] = {}
        failures: list[StoreError] = []
        for tier in self.usable():
            try:
                for key, ref in tier.refs():
                    if key not in entries:
                        entries[key] = Entry(key, ref, self._manifest(ref.manifest), tier.name)
            except StoreError as error:
                failures.append(error)
                if len(self.all) > 1:
                    self._warn(error)
        if len(failures) == len(self.all):
            raise _joined(failures)
        return tuple(sorted(entries.values(), key=lambda entry: entry.ref.source))

    def check_target(self, to: str | os.PathLike[str]) -> str:
        """The real path of a target, which must not be among a tier's own files."""
        text = os.fspath(to)
        if not text or not text.isprintable():
            raise ConfigError(f"{text!r} cannot be a directory's name here", hint="write printable UTF-8")
        target = os.path.realpath(text)
        for tier in self.all:
            if isinstance(tier, SupportsLayouts) and not tier.may_hold(target):
                raise LayoutError(f"{target} is among the store's own files", hint="name a directory outside the store")
        return target

    def _manifest(self, digest: Digest) -> Manifest | None:
        for tier in self.usable():
            try:
                manifest = read_manifest(tier, digest)
            except StoreError as error:
                self._warn(error)
                continue
            if manifest:
                return manifest
        return None

    def _warn(self, error: StoreError) -> None:
        if str(error) not in self._warned:
            self._warned.add(str(error))
            logger.warning("%s; passing it over", error)


def read_manifest(tier: Tier, digest: Digest) -> Manifest | None:
    """A manifest by its digest; None if it is not there or not what its name says."""
    try:
        size = tier.stat(digest).size
        if size > MAX_MANIFEST_SIZE:
            logger.warning("tier %s: blob %s is too large to be a manifest", tier.name, digest)
            return None
        raw = b"".join(tier.open_range(digest, 0, size))
    except BlobNotFound:
        return None
    if Digest.of(raw) == digest:
        try:
            return Manifest.parse(raw)
        except ValueError as error:
            logger.warning("tier %s: blob %s is not a manifest: %s", tier.name, digest, error)
            return None
    logger.warning("tier %s: the manifest %s is damaged", tier.name, digest)
    if isinstance(tier, SupportsVerify) and tier.writable:
        tier.quarantine(digest)
    return None


def _open(tier: "str | os.PathLike[str] | TierConfig | Tier") -> Tier:
    if isinstance(tier, (str, os.PathLike)):
        tier = TierConfig.parse(tier)
    return make_tier(tier) if isinstance(tier, TierConfig) else tier


def _joined(failures: list[StoreError]) -> StoreError:
    if len(failures) == 1:
        return failures[0]
    error = TierUnavailable("; ".join(str(failure) for failure in failures), op="open")
    error.__cause__ = failures[0]
    return error
