"""A tier's staging directory: where attempts begin, are found again, and are cleaned up after."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Protocol

from modelstore.digest import Digest
from modelstore.transfer import limits
from modelstore.transfer.leftovers import find_finished, find_leftovers, forget, sweep_staged
from modelstore.transfer.staging import Publisher, StagedFile

__all__ = ["StagingArea"]


class Owner(Publisher, Protocol):
    """The tier that a staging directory belongs to."""

    def is_local(self) -> bool:
        """Whether a lock that can be had proves its owner dead."""
        ...


class StagingArea:
    """The directory ``folder`` of a tier. What the file system says is translated by the tier."""

    def __init__(self, folder: str, tier: Owner) -> None:
        self.folder = folder
        self._tier = tier

    @contextmanager
    def begin(
        self, size: int, expected: Digest | None, identity: Digest | None, *, keep_cache: bool
    ) -> Iterator[StagedFile]:
        """A staged file; see :meth:`modelstore.tiers.base.SupportsResume.resume`."""
        local = identity is not None and self._tier.is_local()
        with self._tier.errors("stage"):
            staged = StagedFile(
                self.folder, size, expected, self._tier, identity=identity, local=local, keep_cache=keep_cache
            )
        try:
            yield staged
        finally:
            staged.discard()

    def resumable(self, identity: Digest, size: int) -> int:
        """Bytes that an earlier attempt has taken, if its file is one to take over."""
        leftovers = find_leftovers(self.folder, identity, size) if self._tier.is_local() else []
        return next((leftover.bytes for leftover in leftovers if leftover.is_dead), 0)

    def finished(self, identity: Digest, size: int) -> Digest | None:
        """The digest under which an earlier attempt published these bytes, if it was killed soon after."""
        return find_finished(self.folder, identity, size)

    def forget(self, identity: Digest) -> None:
        """Drop what is left of attempts at bytes that are published."""
        forget(self.folder, identity, 0.0 if self._tier.is_local() else limits.DEAD_AFTER)

    def sweep(self) -> None:
        """Drop what killed processes left behind and nobody can use."""
        sweep_staged(self.folder, limits.DEAD_HERE_AFTER if self._tier.is_local() else limits.DEAD_AFTER)

    def reclaim(self, keep: Collection[Digest]) -> None:
        """Drop all that killed processes left behind, but what belongs to these identities."""
        sweep_staged(self.folder, limits.LOCK_SECONDS if self._tier.is_local() else limits.DEAD_AFTER, keep)
