"""What the engine is asked to bring, and what it brought."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from modelstore.digest import CHUNK_SIZE, ChunkSums, Digest
from modelstore.errors import BlobCorrupt, ModelStoreError, SourceCorrupt
from modelstore.sources.base import SourceFile

__all__ = ["Brought", "Job", "RangeReader"]


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

    ``tier`` names the tier that it comes from, None for the source; it decides whose fault wrong bytes are. ``sums``
    are those that a trusted tier recorded with the digest: each chunk must match, and a wrong one is read again alone.
    With them SHA-256 is run only if ``full``. ``identity`` is the same for every attempt at the same bytes, so that one
    can go on where another was killed; None if the bytes cannot be told from others by then.
    """

    file: SourceFile
    reader: RangeReader
    expected: Digest | None = None
    tier: str | None = None
    sums: ChunkSums | None = None
    full: bool = False
    identity: Digest | None = None

    @property
    def known_sums(self) -> tuple[str, ...] | None:
        """The sums to check chunks by, if they are of these chunks."""
        usable = self.sums and self.sums.size == self.file.size and self.sums.chunk_size == CHUNK_SIZE
        return self.sums.chunks if usable and self.sums and self.expected else None

    def wrong_bytes(self, what: str, actual: object, expected: object) -> ModelStoreError:
        """The error that names whose fault it is."""
        message = f"{what} has {actual}, but {expected} was expected"
        if self.tier is not None:
            return BlobCorrupt(message, tier=self.tier, op="read")
        return SourceCorrupt(message, hint="check the pin, or ask who publishes it")


@dataclass(frozen=True, slots=True)
class Brought:
    """A blob that is in the tier now, and how many of its bytes an earlier attempt had left there."""

    digest: Digest
    resumed: int = 0
