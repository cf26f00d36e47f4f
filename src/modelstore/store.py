"""The facade: resolve → look up → fetch what is missing → publish → lay out."""

import logging
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from modelstore.config import Config, TierConfig, load_config
from modelstore.errors import (
    BlobNotFound,
    ConfigError,
    LayoutError,
    NotCached,
    SourceUnauthorized,
    SourceUnavailable,
    TierUnavailable,
)
from modelstore.model import Entry, Found, Model, VerifyReport
from modelstore.plugins import make_layout, make_source
from modelstore.source_url import SourceURL
from modelstore.tiering import Tiers
from modelstore.tiers.base import LocalTier, SupportsLayouts, SupportsVerify, Tier

if TYPE_CHECKING:
    from modelstore.layouts.base import Layout
    from modelstore.maintenance import Maintenance
    from modelstore.progress import Progress
    from modelstore.sources.base import Source as SourceReader

__all__ = ["Store", "fetch"]

logger = logging.getLogger(__name__)

Source = str | os.PathLike[str] | SourceURL

#: How often a model that another process removes meanwhile is fetched again.
_ROUNDS = 5


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
        self._tiers = Tiers(self.config.tiers if tiers is None else tiers)

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The tiers, fastest first."""
        return self._tiers.all

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
        progress: "Progress | None" = None,
        cancel: Event | None = None,
    ) -> Model:
        """Have a model complete in the fastest tier that can be written, and laid out at a directory.

        A model that is already there is returned without asking the source or writing anything. ``to`` is the
        directory to lay it out at (default: ``<root>/models/<short key>``). ``verify="full"`` hashes every blob again
        with SHA-256 first. ``refresh`` asks the source whether it holds something newer; if it cannot be reached, what
        is there stands. ``offline`` asks no source. ``connections`` is how many ranges are read at once, by default as
        many as help. ``progress`` is called from this thread. Setting ``cancel`` ends the call with ``Cancelled``.

        Raises the errors of :mod:`modelstore.errors`; nothing is visible of a fetch that failed.
        """
        begun = time.monotonic()
        url = SourceURL.parse(source)
        if verify not in ("fast", "full"):
            raise ConfigError(f"verify is {verify!r}", hint='write "fast" or "full"')
        if connections is not None and not 1 <= connections <= 256:
            raise ConfigError(f"connections is {connections}", hint="name a number from 1 to 256")
        options = _Options(
            layout=layout,
            target=None if to is None else self._tiers.check_target(to),
            offline=self.config.offline if offline is None else offline,
            full=verify == "full",
            refresh=refresh,
            connections=connections or self.config.connections,  # neither: as many as help
            progress=progress,
            cancel=cancel,
        )
        return _Fetch(self.config, self._tiers, url, options).run(begun)

    def path(self, source: Source) -> Path:
        """Where a cached model is laid out by default. No network, no copying; raises ``NotCached``."""
        url = SourceURL.parse(source)
        return _Fetch(self.config, self._tiers, url, _Options(offline=True)).path()

    # -- what is there ----------------------------------------------------------------------------------------------

    def list(self) -> tuple[Entry, ...]:
        """Every model that some tier knows, by source URL."""
        return self._tiers.entries()

    def show(self, name: str | os.PathLike[str]) -> Entry:
        """One model by its source URL or its key (16 to 64 digits). Raises ``NotCached``."""
        return self._maintenance().entry(name)

    def verify(
        self, *names: str | os.PathLike[str], repair: bool = False, progress: "Progress | None" = None
    ) -> VerifyReport:
        """Hash everything again: the models named, or all of them and all other blobs.

        In every tier, by that tier's own idea of the model. A blob that is wrong is moved to quarantine. ``repair``
        fetches it again from its source and lays the model out again. Raises ``NotCached`` for an unknown name.
        """
        return self._maintenance().verify(names, repair=repair, progress=progress)

    def remove(self, *names: str | os.PathLike[str]) -> tuple[Entry, ...]:
        """Remove models from every tier that can be written: the ref, the default directory, the blobs nobody needs.

        Blobs that another ref or a manifest under ``manifests/`` names stay, and so do directories laid out elsewhere
        or with files of others in them. Raises ``NotCached`` for a name that is not known, ``LockTimeout`` if the model
        is being fetched, ``TierUnavailable`` if nothing that holds it can be written.
        """
        return self._maintenance().remove(names)

    def _maintenance(self) -> "Maintenance":
        from modelstore.maintenance import Maintenance  # a fetch does not need it

        return Maintenance(list(self._tiers.usable()), self._tiers.entries(), self._refetch)

    def _refetch(self, source: str, progress: "Progress | None") -> None:
        options = _Options(offline=self.config.offline, connections=self.config.connections, progress=progress)
        url = SourceURL.parse(source)
        ref = next(self._tiers.refs(url), None)
        if ref and ref.revision:  # what is damaged is to be as it was, wherever a branch points now
            url = replace(url, revision=ref.revision)
        _Fetch(self.config, self._tiers, url, options).bring()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """What :meth:`Store.fetch` was asked for."""

    layout: str = "files"
    target: str | None = None
    offline: bool
    full: bool = False
    refresh: bool = False
    connections: int | None = None
    progress: "Progress | None" = None
    cancel: Event | None = None


class _Fetch:
    """One call of :meth:`Store.fetch`."""

    def __init__(self, config: Config, tiers: Tiers, url: SourceURL, options: _Options) -> None:
        self._config = config
        self._tiers = tiers
        self._url = url
        self._options = options
        self._layout = make_layout(options.layout)
        self._bytes: dict[str, int] | None = None
        self._asked = False  # the source, in this call
        self._at_target = False  # the target was found complete: one look at it is enough

    def run(self, begun: float) -> Model:
        options = self._options
        found = self._find()
        place = self._tiers.place(found)
        for _ in range(_ROUNDS):
            stale = found is not None and self._is_stale(found, place)
            if found is None or stale or place is None or not self._is_ready(found, place):
                if options.offline and (found is None or len(self._tiers.all) == 1):
                    raise self._not_cached()
                found = self.bring()
                place = self._tiers.place(found)
            if place is None:
                raise TierUnavailable("no tier can lay a model out", op="layout", hint="name a directory as a tier")
            target = self._target(place)
            try:
                path = target if self._at_target else self._lay_out(found, place, self._layout, target)
                break
            except BlobNotFound as error:  # removed meanwhile, by another process
                logger.debug("%s; fetching it again", error)
                found = None
        else:
            raise SourceUnavailable(f"{self._url} is removed as fast as it is fetched", hint="see who removes it")
        return Model(
            source=self._url.text,
            key=self._url.key,
            manifest=found.manifest,
            path=Path(path),
            layout=options.layout,
            bytes=self._bytes or self._all_reused(found),
            seconds=time.monotonic() - begun,
            _lay_out=lambda name, to: Path(
                self._lay_out(found, place, make_layout(name), self._tiers.check_target(to))
            ),
        )

    def path(self) -> Path:
        """See :meth:`Store.path`."""
        found = self._find()
        for tier in self._tiers.usable() if found else ():
            if isinstance(tier, SupportsLayouts) and found:
                target = tier.model_path(self._url.key)
                if self._layout.is_complete(found.manifest, tier, target):
                    return Path(target)
        place = self._tiers.place(found)
        if found is None or place is None or place.missing(found.manifest.blobs):
            raise self._not_cached()
        try:
            return Path(self._lay_out(found, place, self._layout, place.model_path(self._url.key)))
        except (LayoutError, BlobNotFound) as error:
            raise NotCached(f"{self._url} is cached but not laid out: {error}") from error

    def _find(self) -> Found | None:
        """What some tier knows of the model, if it is what the pin wants."""
        found = self._tiers.find(self._url)
        return found if found and (not self._url.pin or found.manifest.satisfies(self._url.pin)) else None

    def _target(self, place: LocalTier) -> str:
        return self._options.target or place.model_path(self._url.key)

    def _all_reused(self, found: Found) -> dict[str, int]:
        return {"origin": 0, "reused": found.manifest.size, **{tier.name: 0 for tier in self._tiers.all}}

    def _lay_out(self, found: Found, place: SupportsLayouts, layout: "Layout", target: str) -> str:
        if layout.is_complete(found.manifest, place, target):
            return target
        return layout.materialize(found.manifest, place, target)

    # -- what is there already --------------------------------------------------------------------------------------

    def _is_ready(self, found: Found, place: LocalTier) -> bool:
        """Whether nothing is missing: the target is complete, or can be made from blobs that are there."""
        if self._options.full and isinstance(place, SupportsVerify):
            from modelstore.maintenance import set_aside_damage

            return not set_aside_damage(found.manifest, place)
        self._at_target = self._layout.is_complete(found.manifest, place, self._target(place))
        return self._at_target or not place.missing(found.manifest.blobs)

    def _is_stale(self, found: Found, place: LocalTier | None) -> bool:
        """Whether the source is to be asked about a model that is there."""
        if self._options.offline or self._asked or not (self._options.refresh or self._is_old(found)):
            return False
        if self._tiers.home() is None and place is not None:
            logger.warning("%s cannot be brought up to date: no tier can be written; the cached copy stands", self._url)
            return False
        return True

    def _is_old(self, found: Found) -> bool:
        max_age = self._config.max_age
        if max_age is None:
            return False
        import calendar

        try:
            checked = calendar.timegm(time.strptime(found.ref.checked, "%Y-%m-%dT%H:%M:%SZ"))
        except ValueError:
            return True
        return time.time() - checked > max_age

    # -- bringing it ------------------------------------------------------------------------------------------------

    def bring(self) -> Found:
        """Fetch what is missing, one process at a time where locks work."""
        from modelstore.locking import single_flight

        home = self._tiers.home()
        if home is None:
            raise self._no_home()
        with ExitStack() as stack:
            source = stack.enter_context(closing(make_source(self._url.scheme, self._config)))
            if isinstance(home, SupportsLayouts):
                path = home.lock_path(self._url.key)
                stack.enter_context(single_flight(path, self._config.lock_timeout, self._options.cancel))
            return self._bring(home, source)

    def _bring(self, home: Tier, source: "SourceReader") -> Found:
        from modelstore.fetching import Bringer  # a warm hit does not need the engine

        known = self._tiers.find(self._url)  # again: another process may have brought it meanwhile
        remembered = next((ref.manifest for ref in self._tiers.refs(self._url)), None)
        others = [tier for tier in self._tiers.usable() if tier is not home]
        bringer = Bringer(
            self._url,
            home,
            others,
            connections=self._options.connections,
            full=self._options.full,
            progress=self._options.progress,
            cancel=self._options.cancel,
        )
        self._bytes = bringer.bytes
        renew = known is not None and (self._options.refresh or self._is_old(known))
        pinned = known is None or self._url.pin is None or known.manifest.satisfies(self._url.pin)
        if known and pinned and not renew and bringer.from_tiers(known):
            return known
        if self._options.offline:
            raise self._not_cached()
        self._asked = True
        try:
            return bringer.from_source(
                source,
                known,
                remembered=remembered,
                refresh=self._options.refresh or renew or not pinned,
                check=self._check_target,
            )
        except (SourceUnavailable, SourceUnauthorized, NotCached) as error:
            asked_to = self._options.refresh and isinstance(error, SourceUnauthorized)
            if known is None or not renew or asked_to or not bringer.from_tiers(known):
                raise
            logger.warning("%s; the cached copy stands", error)
            return known

    def _check_target(self, sizes: Mapping[str, int]) -> None:
        """Find out that the target is in the way before the model is fetched, and not after."""
        place = self._tiers.place(None)
        if place is not None:
            self._layout.check_target(sizes, place, self._target(place))

    def _not_cached(self) -> NotCached:
        return NotCached(f"{self._url} is not complete in any tier", hint="fetch it first, online")

    def _no_home(self) -> TierUnavailable:
        names = ", ".join(tier.name for tier in self._tiers.all)
        return TierUnavailable(
            f"no tier can be written ({names})",
            op="fetch",
            hint="name a directory that this user may write",
        )


class FetchOptions(TypedDict, total=False):
    """The options of :meth:`Store.fetch`."""

    to: str | os.PathLike[str] | None
    layout: str
    verify: Literal["fast", "full"]
    refresh: bool
    offline: bool | None
    connections: int | None
    progress: "Progress | None"
    cancel: Event | None


def fetch(source: Source, **options: Unpack[FetchOptions]) -> Model:
    """:meth:`Store.fetch` on the store of the config and the environment."""
    return Store().fetch(source, **options)
