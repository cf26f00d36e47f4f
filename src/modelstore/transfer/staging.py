"""A blob being written into a directory: staged, hashed, then published by one rename."""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from typing import Final, Protocol

from modelstore.digest import ChunkSums, Digest, chunk_hasher
from modelstore.errors import BlobCorrupt
from modelstore.transfer import limits
from modelstore.transfer.files import drop_cached, read_pieces, start_writing_back, write_all
from modelstore.transfer.journal import Journal
from modelstore.transfer.leftovers import JOURNAL, STAGED, Leftover, find_leftovers, staged_name, take_over

__all__ = ["Publisher", "StagedFile"]

BLOB_MODE: Final = 0o444
#: Chunks that may wait to be on the disk before the oldest of them is dropped from the page cache.
_BEHIND: Final = 4


class Publisher(Protocol):
    """What a staged file needs of the tier that it is for."""

    @property
    def name(self) -> str: ...

    def errors(self, op: str) -> AbstractContextManager[None]:
        """Translate :class:`OSError` into the tier's errors."""
        ...

    def publish(self, staged: str, digest: Digest, sums: ChunkSums, found: os.stat_result) -> bool:
        """Rename the staged file to its final name, durably; False if the same blob is there already."""
        ...


class StagedFile:
    """A :class:`~modelstore.tiers.base.FileIngest` in a file that nobody else has open.

    With an ``identity`` it goes on with what an earlier attempt at the same bytes left: the file itself where its lock
    proves that attempt dead (``local``), else its chunks, copied. Raises :class:`OSError`.
    """

    def __init__(
        self,
        folder: str,
        size: int,
        expected: Digest | None,
        tier: Publisher,
        *,
        identity: Digest | None = None,
        local: bool = False,
        keep_cache: bool = True,
    ) -> None:
        self._tier = tier
        self._size = size
        self._expected = expected
        self._keep_cache = keep_cache
        self._sha256 = hashlib.sha256()
        self._hashed = 0
        self._unsettled: list[tuple[int, int]] = []
        self._over = self._published = self._noted = self._kept = self._journalled = False
        self._identity = identity
        self._path = f"{folder}/{staged_name(identity)}"
        self._fd = self._donor = -1
        self._donor_path = ""
        self._journal: Journal | None = None
        self._chunks: dict[int, str] = {}
        try:
            self._begin(folder, identity, local=local)
        except BaseException:
            self.discard()
            raise

    def _begin(self, folder: str, identity: Digest | None, *, local: bool) -> None:
        leftovers = find_leftovers(folder, identity, self._size) if identity else []
        for leftover in leftovers if local else ():
            if identity and self._take_over(leftover, identity):
                return
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._path + STAGED, flags, 0o600)
        try:  # says that somebody lives; see leftovers.py
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if local:
                return  # it would be taken for a dead one's: nobody may find it
        if identity:
            self._journal = Journal(self._path + JOURNAL, identity, self._size, {})
            if leftovers and not local:
                self._copy_from(leftovers[0])

    def _take_over(self, leftover: Leftover, identity: Digest) -> bool:
        # The new journal first: killed between the two, the old pair is still whole.
        self._journal = Journal(self._path + JOURNAL, identity, self._size, leftover.chunks)
        fd = take_over(leftover.path, self._path, self._size)
        if fd is None:
            self._journal.close()
            self._journal = None
            os.unlink(self._path + JOURNAL)
            self._path = f"{os.path.dirname(self._path)}/{staged_name(identity)}"
            return False
        self._fd, self._journalled = fd, True
        self._chunks = dict(leftover.chunks)
        with suppress(OSError):
            os.unlink(leftover.path + JOURNAL)
        return True

    def _copy_from(self, leftover: Leftover) -> None:
        with suppress(OSError):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            self._donor = os.open(leftover.path + STAGED, flags)
            self._donor_path = leftover.path
            self._chunks = dict(leftover.chunks)

    # -- writing ----------------------------------------------------------------------------------------------------

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        if offset < 0 or offset + len(data) > self._size:
            raise ValueError(f"{len(data)} bytes at {offset} are outside a blob of {self._size}")
        if self._over or offset < self._hashed:
            raise ValueError(f"bytes at {offset} come after they were hashed")
        with self._tier.errors("write"):
            write_all(self._fd, data, offset)

    def recall(self, index: int, start: int, stop: int) -> str | None:
        promised = self._chunks.pop(index, None)
        if promised is None:
            return None
        hasher = chunk_hasher()
        position = start
        for piece in _readable(self._fd if self._donor < 0 else self._donor, start, stop):
            hasher.update(piece)
            if self._donor >= 0:
                self.write_at(position, piece)
            position += len(piece)
        if position < stop or hasher.hexdigest() != promised:
            return None
        if self._donor >= 0:
            self.record(index, promised)
        return promised

    def record(self, index: int, chunk_sum: str) -> None:
        if self._journal:
            self._journal.record(index, chunk_sum)
            self._journalled = True

    def settle(self, start: int, stop: int) -> None:
        start_writing_back(self._fd, start, stop)
        if not self._keep_cache:
            self._unsettled.append((start, stop))
            if len(self._unsettled) > _BEHIND:
                with self._tier.errors("write"):
                    drop_cached(self._fd, *self._unsettled.pop(0))

    # -- hashing and publishing -------------------------------------------------------------------------------------

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

    def commit(self, sums: ChunkSums, verified: Digest | None = None) -> Digest:
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
        if verified is None:
            self.hash_to(self._size)
        digest = verified or self.digest
        if self._expected is not None and digest != self._expected:
            raise BlobCorrupt(f"the staged bytes have {digest}, not {self._expected}", tier=name, op="commit")
        if not self._keep_cache:
            with self._tier.errors("sync"):
                drop_cached(self._fd, 0, self._size)
        if self._journal and digest != self._identity:
            self._journal.done(digest)  # killed before a ref says so, nobody would know
            self._noted = True
        with self._tier.errors("publish"):
            if not self._tier.publish(self._path + STAGED, digest, sums, found):
                _remove(self._path + STAGED)
            self._published = True
        if self._donor >= 0 and time.time() - os.fstat(self._donor).st_mtime > limits.DEAD_AFTER:
            _remove(self._donor_path + STAGED, self._donor_path + JOURNAL)
        return digest

    # -- letting go -------------------------------------------------------------------------------------------------

    def keep(self) -> None:
        self._kept = True

    def discard(self) -> None:
        """Let go of the file; unless it was published, or is kept to be resumed, it is gone."""
        kept = self._kept and self._journalled and not self._over
        if self._path and not self._published and not kept:
            _remove(self._path + STAGED)
        if self._journal:
            self._journal.close()
            if not kept and not (self._published and self._noted):
                _remove(self._path + JOURNAL)
        for fd in (self._fd, self._donor):
            if fd >= 0:
                with suppress(OSError):
                    os.close(fd)
        self._path, self._journal = "", None
        self._fd = self._donor = -1


def _remove(*paths: str) -> None:
    for path in paths:
        with suppress(OSError):
            os.unlink(path)


def _readable(fd: int, start: int, stop: int) -> Iterator[bytes]:
    """The bytes as far as they can be read: what an earlier attempt left may be on a broken disk."""
    with suppress(OSError):
        yield from read_pieces(fd, start, stop)
