"""The identity of bytes: :class:`Digest`, and :class:`ChunkSums` to re-check them at memory speed."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["CHUNK_SIZE", "ChunkSums", "Digest", "chunk_hasher"]

#: 16 MiB: the unit of ranged read, checksum, retry and repair (docs/format.md). Every blob is cut at its multiples.
CHUNK_SIZE: Final = 16 * 1024 * 1024

_HEX64 = re.compile(r"[0-9a-f]{64}")
_HEX32 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """The SHA-256 of some bytes: 64 lowercase hexadecimal digits, checked when built.

    The only way to name a blob, so that no unchecked text ever becomes part of a path.
    Printed as ``sha256:<hex>``, the form of OCI and Ollama. Raises :class:`ValueError` for anything else.
    """

    hex: str

    def __post_init__(self) -> None:
        if not _HEX64.fullmatch(self.hex):
            raise ValueError(f"not a SHA-256 of 64 lowercase hexadecimal digits: {self.hex!r:.100}")

    @classmethod
    def parse(cls, text: str) -> "Digest":
        """Read ``sha256:<hex>``; raises :class:`ValueError` for any other algorithm or form."""
        algorithm, colon, hex_digits = text.partition(":")
        if algorithm != "sha256" or not colon:
            raise ValueError(f"not a digest of the form sha256:<64 hex digits>: {text!r:.100}")
        return cls(hex_digits)

    @classmethod
    def of(cls, data: bytes) -> "Digest":
        """The digest of bytes at hand."""
        return cls(hashlib.sha256(data).hexdigest())

    @property
    def filename(self) -> str:
        """``sha256-<hex>``: the file name under ``blobs/``, as Ollama writes it."""
        return f"sha256-{self.hex}"

    @classmethod
    def from_filename(cls, name: str) -> "Digest | None":
        """The digest a file under ``blobs/`` is named for, or None for a foreign file."""
        prefix, dash, hex_digits = name.partition("-")
        return cls(hex_digits) if prefix == "sha256" and dash and _HEX64.fullmatch(hex_digits) else None

    def __str__(self) -> str:
        return f"sha256:{self.hex}"


def chunk_hasher() -> Any:
    """A fresh XXH3-128 hasher (``update``, ``hexdigest``); loads ``xxhash`` on first use."""
    import xxhash

    return xxhash.xxh3_128()


@dataclass(frozen=True, slots=True)
class ChunkSums:
    """XXH3-128 of each chunk of a blob, recorded when its SHA-256 was verified.

    Not a substitute for the digest (XXH3 resists accidents, not attackers): a fast way to see that bytes verified
    once are still the same. ``chunks`` holds 32 lowercase hexadecimal digits each, in the canonical (big-endian) form.
    """

    size: int
    chunks: tuple[str, ...]
    chunk_size: int = CHUNK_SIZE

    def __post_init__(self) -> None:
        if self.size < 0 or self.chunk_size <= 0 or len(self.chunks) != -(-self.size // self.chunk_size):
            raise ValueError(f"{len(self.chunks)} chunk sums do not cover {self.size} bytes")
        if not all(_HEX32.fullmatch(chunk) for chunk in self.chunks):
            raise ValueError("a chunk sum is not an XXH3-128 of 32 lowercase hexadecimal digits")

    @classmethod
    def of(cls, pieces: Iterable[bytes], chunk_size: int = CHUNK_SIZE) -> "ChunkSums":
        """The sums of bytes that come in pieces of any length."""
        sums: list[str] = []
        size = 0
        hasher = chunk_hasher()
        for piece in _cut(pieces, chunk_size):
            hasher.update(piece)
            size += len(piece)
            if size % chunk_size == 0:
                sums.append(hasher.hexdigest())
                hasher = chunk_hasher()
        if size % chunk_size:
            sums.append(hasher.hexdigest())
        return cls(size, tuple(sums), chunk_size)

    def match(self, pieces: Iterable[bytes]) -> bool:
        """Whether the bytes are as long as recorded and every chunk has its sum."""
        return ChunkSums.of(pieces, self.chunk_size) == self


def _cut(pieces: Iterable[bytes], chunk_size: int) -> Iterator[memoryview]:
    """The same bytes, cut so that no piece straddles a chunk border."""
    position = 0
    for piece in pieces:
        view = memoryview(piece)
        while view:
            room = chunk_size - position % chunk_size
            yield view[:room]
            position += min(room, len(view))
            view = view[room:]
