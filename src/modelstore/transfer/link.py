"""Give a blob's bytes another name: reflink, else hard link, else copy."""

import errno
import fcntl
import os
from contextlib import suppress
from typing import Final

from modelstore.digest import ChunkSums
from modelstore.errors import BlobCorrupt
from modelstore.transfer.files import PIECE, hash_file, read_pieces, write_all

__all__ = ["Linker", "exchange"]

#: ioctl_ficlonerange(2): share the extents of another file, copied on write.
FICLONE: Final = 0x40049409
#: rename(2): swap two names in one step.
RENAME_EXCHANGE: Final = 2
AT_FDCWD: Final = -100
FILE_MODE: Final = 0o444

#: What a file system says when it cannot do a thing, rather than when it fails at it.
_CANNOT: Final = frozenset(
    (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EMLINK)
)


class Linker:
    """Places files from one directory into another, each time in the best way that these two allow.

    A reflink shares the space and cannot change the blob; a hard link shares the bytes; a copy is verified.
    What was found not to work is not tried again by the same object.
    """

    def __init__(self) -> None:
        self._ways = [self._reflink, self._hardlink, self._copy]
        self._unsynced: list[str] = []

    @property
    def copies(self) -> bool:
        """Whether only copying is left to try."""
        return len(self._ways) == 1

    def place(self, blob: str, target: str, sums: ChunkSums | None) -> None:
        """Make ``target``, which must not exist, a file with the blob's bytes, mode 0444.

        ``sums`` are the blob's; a copy is compared with them, or with the blob if there are none.
        Raises :class:`OSError`, and ``BlobCorrupt`` if a copy came out wrong.
        """
        while True:
            try:
                return self._ways[0](blob, target, sums)
            except OSError as error:
                if error.errno not in _CANNOT or len(self._ways) == 1:
                    raise
                del self._ways[0]

    def sync(self) -> None:
        """Make what was placed durable. After all of it: the first flush then takes most of the others along."""
        while self._unsynced:
            fd = os.open(self._unsynced.pop(), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def _reflink(self, blob: str, target: str, _: ChunkSums | None) -> None:
        source, copy = _open_pair(blob, target)
        try:
            fcntl.ioctl(copy, FICLONE, source)
            os.fchmod(copy, FILE_MODE)
            self._unsynced.append(target)
        except BaseException:
            os.unlink(target)
            raise
        finally:
            os.close(source)
            os.close(copy)

    @staticmethod
    def _hardlink(blob: str, target: str, _: ChunkSums | None) -> None:
        os.link(blob, target, follow_symlinks=False)

    @staticmethod
    def _copy(blob: str, target: str, sums: ChunkSums | None) -> None:
        source, copy = _open_pair(blob, target)
        try:
            _copy_bytes(source, copy)
            os.fchmod(copy, FILE_MODE)
            os.fsync(copy)
            if not (sums or hash_file(blob)[1]).match(read_pieces(copy)):
                raise BlobCorrupt(f"the copy {target} does not have the bytes of {blob}", op="copy")
        except BaseException:
            with suppress(OSError):
                os.unlink(target)
            raise
        finally:
            os.close(source)
            os.close(copy)


def _open_pair(blob: str, target: str) -> tuple[int, int]:
    source = os.open(blob, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        copy = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except BaseException:
        os.close(source)
        raise
    return source, copy


def _copy_bytes(source: int, copy: int) -> None:
    """In the kernel where it can (which is a copy on the server for NFS 4.2), else through memory."""
    position = 0
    try:
        while copied := os.copy_file_range(source, copy, 64 * PIECE, position, position):
            position += copied
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        for piece in read_pieces(source, position):
            write_all(copy, piece, position)
            position += len(piece)


def exchange(one: str, other: str) -> bool:
    """Swap two names in one step; False if the file system or the C library cannot. Raises :class:`OSError`."""
    import ctypes  # costs more to load than a warm hit takes

    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), one)
