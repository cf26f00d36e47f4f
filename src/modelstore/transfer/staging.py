"""A blob being written into a directory: staged, hashed, then published by one rename."""

import fcntl
import hashlib
import os
import time
from contextlib import AbstractContextManager, suppress
from typing import Final, Protocol

from modelstore.digest import ChunkSums, Digest
from modelstore.errors import BlobCorrupt
from modelstore.transfer.files import read_pieces, write_all

__all__ = ["DEAD_AFTER", "StagedFile", "sweep_staged"]

BLOB_MODE: Final = 0o444
#: Seconds. A live writer writes more often: a stall of the network ends after 20, a wait it asks for after 120.
DEAD_AFTER: Final = 15 * 60.0
#: Older than this, a staged file belongs to nobody, on any machine that shares the directory.
STALE_AFTER: Final = 24 * 3600.0


def sweep_staged(folder: str, idle: float = DEAD_AFTER) -> None:
    """Drop staged files whose writers were killed: nobody holds their lock, and they were not written for ``idle`` s.

    Where locks lie, a writer that paused for as long loses its file; its commit then fails and nothing is published.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            age = time.time() - entry.stat(follow_symlinks=False).st_mtime
            if age >= idle and (age > STALE_AFTER or _is_unlocked(entry.path)):
                os.unlink(entry.path)


def _is_unlocked(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(fd)


class Publisher(Protocol):
    """What a staged file needs of the tier that it is for."""

    @property
    def name(self) -> str: ...

    def errors(self, op: str) -> AbstractContextManager[None]:
        """Translate :class:`OSError` into the tier's errors."""
        ...

    def publish(self, staged: str, digest: Digest, sums: ChunkSums, found: os.stat_result) -> bool:
        """Rename the staged file to its final name, durably; False if it was not needed."""
        ...


class StagedFile:
    """An :class:`~modelstore.tiers.base.Ingest` in a file that nobody else ever opens."""

    def __init__(self, path: str, size: int, expected: Digest | None, tier: Publisher) -> None:
        self._tier = tier
        self._size = size
        self._expected = expected
        self._sha256 = hashlib.sha256()
        self._hashed = 0
        self._over = False
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with suppress(OSError):  # says that somebody lives; see sweep_staged
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        if offset < 0 or offset + len(data) > self._size:
            raise ValueError(f"{len(data)} bytes at {offset} are outside a blob of {self._size}")
        if self._over or offset < self._hashed:
            raise ValueError(f"bytes at {offset} come after they were hashed")
        with self._tier.errors("write"):
            write_all(self._fd, data, offset)

    def hash_to(self, stop: int) -> None:
        # Read back what was written, so that the digest is one of bytes in the file and not of bytes on the wire.
        with self._tier.errors("read back"):
            for piece in read_pieces(self._fd, self._hashed, stop):
                self._sha256.update(piece)
                self._hashed += len(piece)
        if self._hashed < stop:
            raise BlobCorrupt(f"only {self._hashed} of {stop} bytes were staged", tier=self._tier.name, op="hash")

    @property
    def digest(self) -> Digest:
        if self._hashed != self._size:
            raise ValueError(f"only {self._hashed} of {self._size} bytes are hashed")
        return Digest(self._sha256.hexdigest())

    def commit(self, sums: ChunkSums) -> Digest:
        name = self._tier.name
        if self._over:
            raise ValueError("this ingest was committed before, or failed to be")
        self._over = True  # above all after a failed fsync: a second one would claim success
        with self._tier.errors("sync"):
            os.fchmod(self._fd, BLOB_MODE)
            os.fsync(self._fd)
            found = os.fstat(self._fd)
        if found.st_size != self._size or sums.size != self._size:
            raise BlobCorrupt(f"{found.st_size} bytes were staged for a blob of {self._size}", tier=name, op="commit")
        self.hash_to(self._size)
        if self._expected is not None and self.digest != self._expected:
            raise BlobCorrupt(f"the staged bytes have {self.digest}, not {self._expected}", tier=name, op="commit")
        with self._tier.errors("publish"):
            if self._tier.publish(self._path, self.digest, sums, found):
                self._path = ""
        return self.digest

    def discard(self) -> None:
        """Let go of the file; unless it was published, it is gone."""
        if self._path:
            with suppress(OSError):
                os.unlink(self._path)
            self._path = ""
        if self._fd >= 0:
            with suppress(OSError):
                os.close(self._fd)
            self._fd = -1
