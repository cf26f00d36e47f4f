"""What a staged file holds so far: one line for each finished chunk, beside the file, so that a kill loses little.

    {"chunk_size":16777216,"identity":"<64 hex>","size":<bytes>,"version":1}
    <chunk index> <XXH3-128, 32 hex>
    …
    done <SHA-256, 64 hex>

A journal is only a hint. Every chunk that it names is hashed again before it is used, so whatever is wrong with a
journal costs bytes and never correctness: a line that cannot be read is passed over, a file that cannot is ignored.
"""

import json
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from modelstore.digest import CHUNK_SIZE, Digest
from modelstore.transfer.files import append, read_pieces

__all__ = ["Journal", "Journalled", "read_journal"]

VERSION: Final = 1
_LINE: Final = re.compile(rb"(\d{1,9}) ([0-9a-f]{32})")
_DONE: Final = re.compile(rb"done ([0-9a-f]{64})")
_LONGEST_LINE: Final = 64
_LONGEST_HEADER: Final = 512


class Journal:
    """A new journal. A line is one ``write``, so that threads need no lock; failing to write is not fatal."""

    def __init__(self, path: str, identity: Digest, size: int, chunks: Mapping[int, str]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        self._failed = False
        self._write(_header(identity, size) + b"".join(_line(*chunk) for chunk in chunks.items()))

    def record(self, index: int, chunk_sum: str) -> None:
        """A chunk is in the staged file, and has this XXH3-128."""
        self._write(_line(index, chunk_sum))

    def done(self, digest: Digest) -> None:
        """The whole file has this digest, and is about to be published."""
        self._write(f"done {digest.hex}\n".encode())

    def _write(self, data: bytes) -> None:
        if not self._failed:
            try:
                append(self._fd, data)
            except OSError:
                self._failed = True  # without it a kill costs more, and nothing else

    def close(self) -> None:
        """Let go of the file. Nobody may record any more."""
        with suppress(OSError):
            os.close(self._fd)


def _line(index: int, chunk_sum: str) -> bytes:
    return f"{index} {chunk_sum}\n".encode()


def _header(identity: Digest, size: int) -> bytes:
    fields = {"chunk_size": CHUNK_SIZE, "identity": identity.hex, "size": size, "version": VERSION}
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Journalled:
    """What a journal names: the XXH3-128 of chunks by index, and the digest of the whole, if it came to that."""

    chunks: Mapping[int, str] = field(default_factory=dict)
    done: Digest | None = None


def read_journal(path: str, identity: Digest, size: int) -> Journalled:
    """What a journal says of these bytes; nothing if it is one of others, or cannot be read."""
    chunks = -(-size // CHUNK_SIZE)
    raw = _read(path, _LONGEST_HEADER + 4 * chunks * _LONGEST_LINE)
    header, *lines = raw.split(b"\n")
    if not lines or header + b"\n" != _header(identity, size):
        return Journalled()
    found: dict[int, str] = {}
    done = None
    for line in lines[:-1]:  # what follows the last line's end was cut off while it was written
        if (match := _LINE.fullmatch(line)) and int(match[1]) < chunks:
            found[int(match[1])] = match[2].decode()
        elif match := _DONE.fullmatch(line):
            done = Digest(match[1].decode())
    return Journalled(found, done)


def _read(path: str, longest: int) -> bytes:
    """A plain file of at most ``longest`` bytes, or nothing."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode) and found.st_size <= longest:
                return b"".join(read_pieces(fd))
        finally:
            os.close(fd)
    return b""
