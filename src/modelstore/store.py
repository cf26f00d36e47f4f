"""The facade: resolve → look up → fetch what is missing → publish → lay out."""

import calendar
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Event
from typing import Literal, TypedDict, Unpack

from modelstore.config import Config, TierConfig, load_config
from modelstore.digest import Digest
from modelstore.errors import (
    ConfigError,
    LayoutError,
    NotCached,
    SourceUnavailable,
    StoreError,
    TierUnavailable,
)
from modelstore.fetching import Bringer, Found, read_manifest
from modelstore.layouts.base import Layout
from modelstore.locking import single_flight
from modelstore.maintenance import Maintenance, set_aside_damage
from modelstore.manifest import Manifest
from modelstore.model import Entry, Model, VerifyReport
from modelstore.plugins import make_layout, make_source, make_tier
from modelstore.progress import Progress
from modelstore.source_url import CacheKey, SourceURL
from modelstore.sources.base import Source as SourceReader
from modelstore.tiers.base import LocalTier, SupportsLayouts, SupportsVerify, Tier

__all__ = ["Store", "fetch"]

logger = logging.getLogger(__name__)

Source = str | os.PathLike[str] | SourceURL


class Store:
    """Ordered tiers, fastest first, and the sources behind them.

    ``tiers`` are locations (``/path``, ``scheme://…``) or :class:`~modelstore.tiers.base.Tier` objects; without them
    those of the config count. ``config`` is a :class:`~modelstore.config.Config` or the path of a TOML file; without it
    ``MODELSTORE_CONFIG``, the user's config file and the environment count. Nothing is opened before it is used.

    Safe to use from several threads. Raises :class:`~modelstore.errors.ConfigError`.
    """

    def __init__(
        self,
        tiers: Iterable["str | os.PathLike[str] | TierConfig | Tier"] | None = None,
        config: "Config | str | os.PathLike[str] | None" = None,
    ) -> None:
        self.config = config if isinstance(config, Config) else load_config(config)
        self.tiers = tuple(map(_open, self.config.tiers if tiers is None else tiers))
        if not self.tiers or len({tier.name for tier in self.tiers}) < len(self.tiers):
            raise ConfigError("a store needs one tier or more, each with a name of its own")
        self._warned: set[str] = set()

    # -- fetching --------------------------------------------------------------------------------------------------

    def fetch(
        self,
        source: Source,
        *,
        to: str | os.PathLike[str] | None = None,
        layout: str = "files",
        verify: Literal["fast", "full"] = "fast",
        refresh: bool = False,
        offline: bool | None = None,
        connections: int | None = None,
        progress: Progress | None = None,
        cancel: Event | None = None,
    ) -> Model:
        """Have a model complete in the fastest tier that can be written, and laid out at a directory.

        A model that is already there is returned without asking the source or writing anything. ``to`` is the
        directory to lay it out at (default: ``<root>/models/<short key>``). ``verify="full"`` hashes every blob again
        with SHA-256 first. ``refresh`` asks the source whether it holds something newer; if it cannot be reached, what
        is there stands. ``offline`` asks no source. ``connections`` is how many ranges are read at once. ``progress``
        is called from this thread. Setting ``cancel`` ends the call with ``Cancelled``.

        Raises the errors of :mod:`modelstore.errors`; nothing is visible of a fetch that failed.
        """
        begun = time.monotonic()
        url = SourceURL.parse(source)
        if verify not in ("fast", "full"):
            raise ConfigError(f"verify is {verify!r}", hint='write "fast" or "full"')
        if connections is not None and not 1 <= connections <= 256:
            raise ConfigError(f"connections is {connections}", hint="name a number from 1 to 256")
        return _Fetch(
            self,
            url,
            make_layout(layout),
            layout,
            None if to is None else os.path.realpath(to),
            offline=self.config.offline if offline is None else offline,
            full=verify == "full",
            connections=connections or self.config.connections,
            progress=progress,
            cancel=cancel,
        ).run(begun, refresh=refresh)

    def path(self, source: Source) -> Path:
        """Where a cached model is laid out by default. No network; raises ``NotCached``."""
        try:
            return self.fetch(source, offline=True).path
        except LayoutError as error:
            raise NotCached(f"{SourceURL.parse(source)} is cached but not laid out: {error}") from error

    # -- what is there ----------------------------------------------------------------------------------------------

    def find(self, url: SourceURL) -> Found | None:
        """The ref and manifest of a source URL in the first tier that has them, or None."""
        for tier in self.usable():
            try:
                ref = tier.read_ref(url.key)
            except StoreError as error:
                self._warn(error)
                continue
            if ref and (manifest := self._manifest(ref.manifest)):
                return Found(ref, manifest)
        return None

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

    def list(self) -> tuple[Entry, ...]:
        """Every model that some tier knows, by source URL."""
        entries: dict[CacheKey, Entry] = {}
        for tier in self.usable():
            for key, ref in tier.refs():
                if key not in entries:
                    entries[key] = Entry(key, ref, self._manifest(ref.manifest), tier.name)
        return tuple(sorted(entries.values(), key=lambda entry: entry.ref.source))

    def show(self, name: str | os.PathLike[str]) -> Entry:
        """One model by its source URL or its key (16 to 64 digits). Raises ``NotCached``."""
        return self._maintenance().entry(name)

    def verify(
        self, *names: str | os.PathLike[str], repair: bool = False, progress: Progress | None = None
    ) -> VerifyReport:
        """Hash everything again: the models named, or all of them and all other blobs.

        A blob that is wrong is moved to quarantine. ``repair`` fetches it again from its source and lays the model out
        again. Raises ``NotCached`` for a name that is not known.
        """
        return self._maintenance().verify(names, repair=repair, progress=progress)

    def remove(self, *names: str | os.PathLike[str]) -> tuple[Entry, ...]:
        """Remove models: the ref, the default directory, and the blobs that nothing else needs.

        Directories laid out elsewhere stay. Raises ``NotCached`` for a name that is not known, ``LockTimeout`` if the
        model is being fetched.
        """
        return self._maintenance().remove(names)

    def _maintenance(self) -> Maintenance:
        return Maintenance(list(self.usable()), self.list(), self._refetch)

    def _refetch(self, source: str, progress: Progress | None) -> None:
        url = SourceURL.parse(source)
        _Fetch(
            self,
            url,
            make_layout("files"),
            "files",
            None,
            offline=self.config.offline,
            full=False,
            connections=self.config.connections,
            progress=progress,
            cancel=None,
        ).bring()

    # -- tiers ------------------------------------------------------------------------------------------------------

    def usable(self) -> Iterator[Tier]:
        """The tiers that can be opened. One that cannot is reported once; if none can, its error is raised."""
        failures: list[StoreError] = []
        for tier in self.tiers:
            try:
                _ = tier.writable
            except StoreError as error:
                failures.append(error)
                if len(self.tiers) > 1:
                    self._warn(error)
            else:
                yield tier
        if len(failures) == len(self.tiers):
            raise _joined(failures)

    def home(self) -> Tier | None:
        """The fastest tier that can be written and that models can be laid out from, else one that can be written."""
        writable = [tier for tier in self.usable() if tier.writable]
        return next((tier for tier in writable if isinstance(tier, SupportsLayouts)), next(iter(writable), None))

    def _warn(self, error: StoreError) -> None:
        if str(error) not in self._warned:
            self._warned.add(str(error))
            logger.warning("%s; passing it over", error)


class _Fetch:
    """One call of :meth:`Store.fetch`."""

    def __init__(
        self,
        store: Store,
        url: SourceURL,
        layout: Layout,
        layout_name: str,
        target: str | None,
        *,
        offline: bool,
        full: bool,
        connections: int,
        progress: Progress | None,
        cancel: Event | None,
    ) -> None:
        self._store = store
        self._url = url
        self._layout = layout
        self._layout_name = layout_name
        self._target = target
        self._offline = offline
        self._full = full
        self._connections = connections
        self._progress = progress
        self._cancel = cancel
        self._bytes: dict[str, int] | None = None

    def run(self, begun: float, *, refresh: bool) -> Model:
        found = self._store.find(self._url)
        if found and self._url.pin and not found.manifest.satisfies(self._url.pin):
            found = None
        place = self._place(found)
        stale = refresh or (found is not None and self._is_old(found))
        if found is None or stale or place is None or not self._is_ready(found, place):
            if self._offline and (found is None or len(self._store.tiers) == 1):
                raise self._not_cached()
            found = self.bring(refresh=refresh)
            place = self._place(found)
        if place is None:
            raise TierUnavailable("no tier can lay a model out", op="layout", hint="name a directory as a tier")
        target = self._target or place.model_path(self._url.key)
        path = self._lay_out(found, place, self._layout, target)
        return Model(
            source=self._url.text,
            key=self._url.key,
            manifest=found.manifest,
            path=Path(path),
            layout=self._layout_name,
            bytes=self._bytes or self._all_reused(found),
            seconds=time.monotonic() - begun,
            _lay_out=lambda name, to: Path(self._lay_out(found, place, make_layout(name), os.path.realpath(to))),
        )

    def _all_reused(self, found: Found) -> dict[str, int]:
        return {"origin": 0, "reused": found.manifest.size, **{tier.name: 0 for tier in self._store.tiers}}

    def _lay_out(self, found: Found, place: SupportsLayouts, layout: Layout, target: str) -> str:
        if layout.is_complete(found.manifest, place, target):
            return target
        return layout.materialize(found.manifest, place, target)

    # -- what is there already --------------------------------------------------------------------------------------

    def _place(self, found: Found | None) -> LocalTier | None:
        """The tier to lay the model out from: the one to write to, else one that has all of it."""
        home = self._store.home()
        if isinstance(home, SupportsLayouts):
            return home
        for tier in self._store.usable():
            if isinstance(tier, SupportsLayouts) and found and not tier.missing(found.manifest.blobs):
                return tier
        return None

    def _is_ready(self, found: Found, place: LocalTier) -> bool:
        """Whether nothing is missing: the target is complete, or can be made from blobs that are there."""
        target = self._target or place.model_path(self._url.key)
        if self._full and isinstance(place, SupportsVerify):
            return not set_aside_damage(found.manifest, place)
        return self._layout.is_complete(found.manifest, place, target) or not place.missing(found.manifest.blobs)

    def _is_old(self, found: Found) -> bool:
        max_age = self._store.config.max_age
        if max_age is None or self._offline:
            return False
        try:
            checked = calendar.timegm(time.strptime(found.ref.checked, "%Y-%m-%dT%H:%M:%SZ"))
        except ValueError:
            return True
        return time.time() - checked > max_age

    # -- bringing it ------------------------------------------------------------------------------------------------

    def bring(self, *, refresh: bool = False) -> Found:
        """Fetch what is missing, one process at a time where locks work."""
        home = self._store.home()
        if home is None:
            raise self._no_home()
        with ExitStack() as stack:
            source = stack.enter_context(closing(make_source(self._url.scheme, self._store.config)))
            if isinstance(home, SupportsLayouts):
                path = home.lock_path(self._url.key)
                stack.enter_context(single_flight(path, self._store.config.lock_timeout, self._cancel))
            return self._bring(home, source, refresh=refresh)

    def _bring(self, home: Tier, source: SourceReader, *, refresh: bool) -> Found:
        known = self._store.find(self._url)  # again: another process may have brought it meanwhile
        others = [tier for tier in self._store.usable() if tier is not home]
        bringer = Bringer(
            self._url,
            home,
            others,
            connections=self._connections,
            progress=self._progress,
            cancel=self._cancel,
        )
        self._bytes = bringer.bytes
        renew = known is not None and (refresh or self._is_old(known))
        pinned = known is None or self._url.pin is None or known.manifest.satisfies(self._url.pin)
        if known and pinned and not renew and bringer.from_tiers(known):
            return known
        if self._offline:
            raise self._not_cached()
        try:
            return bringer.from_source(source, known, refresh=renew or not pinned, check=self._check_target)
        except SourceUnavailable as error:
            if known is None or not renew or not bringer.from_tiers(known):
                raise
            logger.warning("%s; the cached copy stands", error)
            return known

    def _check_target(self, sizes: Mapping[str, int]) -> None:
        """Find out that the target is in the way before the model is fetched, and not after."""
        place = self._place(None)
        if place is not None:
            self._layout.check_target(sizes, place, self._target or place.model_path(self._url.key))

    def _not_cached(self) -> NotCached:
        return NotCached(f"{self._url} is not complete in any tier", hint="fetch it first, online")

    def _no_home(self) -> TierUnavailable:
        names = ", ".join(tier.name for tier in self._store.tiers)
        return TierUnavailable(
            f"no tier can be written ({names})",
            op="fetch",
            hint="name a directory that this user may write",
        )


def _open(tier: "str | os.PathLike[str] | TierConfig | Tier") -> Tier:
    if isinstance(tier, (str, os.PathLike)):
        tier = TierConfig.parse(tier)
    return make_tier(tier) if isinstance(tier, TierConfig) else tier


class FetchOptions(TypedDict, total=False):
    """The options of :meth:`Store.fetch`."""

    to: str | os.PathLike[str] | None
    layout: str
    verify: Literal["fast", "full"]
    refresh: bool
    offline: bool | None
    connections: int | None
    progress: Progress | None
    cancel: Event | None


def fetch(source: Source, **options: Unpack[FetchOptions]) -> Model:
    """:meth:`Store.fetch` on the store of the config and the environment."""
    return Store().fetch(source, **options)


def _joined(failures: "list[StoreError]") -> StoreError:
    if len(failures) == 1:
        return failures[0]
    error = TierUnavailable("; ".join(str(failure) for failure in failures), op="open")
    error.__cause__ = failures[0]
    return error
