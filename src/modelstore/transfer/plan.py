"""How a blob is cut into ranges. Pure."""

from dataclasses import dataclass

from modelstore.digest import CHUNK_SIZE

__all__ = ["Chunk", "plan_chunks"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes ``start`` up to, not including, ``stop`` of a blob; ``index`` counts from 0."""

    index: int
    start: int
    stop: int


def plan_chunks(size: int, chunk_size: int = CHUNK_SIZE) -> list[Chunk]:
    """Cover ``size`` bytes exactly once with chunks that begin at multiples of ``chunk_size``.

    An empty blob has no chunk. Raises :class:`ValueError` for a negative size or a chunk size below 1.
    """
    if size < 0 or chunk_size < 1:
        raise ValueError(f"cannot cut {size} bytes into chunks of {chunk_size}")
    starts = range(0, size, chunk_size)
    return [Chunk(index, start, min(start + chunk_size, size)) for index, start in enumerate(starts)]
