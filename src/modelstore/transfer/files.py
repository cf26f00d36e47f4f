"""The few file operations on which durability and integrity rest, each written once."""

import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from threading import Lock
from typing import Any, Final

from modelstore.digest import ChunkSums, Digest, chunk_hasher

__all__ = [
    "GroupSync",
    "append",
    "atomic_write",
    "drop_cached",
    "fsync_dir",
    "hash_file",
    "is_local",
    "is_no_space",
    "make_dirs",
    "preload",
    "read_pieces",
    "start_writing_back",
    "write_all",
]

#: Bytes per read and per write. 1 MiB keeps a core busy without showing in the resident size.
PIECE: Final = 1024 * 1024
DIR_MODE: Final = 0o755
_LOCAL: Final = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "f2fs", "zfs", "overlay"))
FILE_MODE: Final = 0o644
#: A space, tab, line end or backslash in a mount point (proc(5)).
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
# Flags of sync_file_range(2).
_WAIT_BEFORE: Final = 1
_WRITE: Final = 2
_WAIT_AFTER: Final = 4


def is_local(path: str) -> bool:
    """Whether a path is on a file system of this machine, where ``flock`` excludes and is freed by a kill.

    From ``/proc/self/mountinfo`` (proc(5)); False if it cannot be told.
    """
    os.stat(path)
    place = f"{os.path.realpath(path)}/"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            lines = [line.partition(" - ") for line in mounts]
    except OSError:
        return False
    kind, longest = "", 0
    for mount, _, rest in lines:
        # By name, not by device: a Btrfs subvolume has another number than its mount. The last of several counts.
        point = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), mount.split(" ")[4]).rstrip("/") + "/"
        if place.startswith(point) and len(point) >= longest:
            kind, longest = rest.split(" ")[0], len(point)
    return kind in _LOCAL


def is_no_space(error: OSError) -> bool:
    """Whether an error says that space, inodes or quota are used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``: one ``pwrite`` may write less (at most 0x7ffff000 bytes on Linux)."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        offset += written
        view = view[written:]


def append(fd: int, data: bytes) -> None:
    """Write all of ``data`` where the file ends. It was opened with ``O_APPEND``."""
    while data:
        data = data[os.write(fd, data) :]


def read_pieces(fd: int, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The bytes of an open file from ``start`` up to ``stop`` or its end, in pieces of at most 1 MiB."""
    while stop is None or start < stop:
        piece = os.pread(fd, PIECE if stop is None else min(PIECE, stop - start), start)
        if not piece:
            return
        yield piece
        start += len(piece)


@cache
def _sync_file_range() -> Any:
    """sync_file_range(2), which the standard library lacks; None where the C library does, too."""
    import ctypes  # costs more to load than a warm hit takes

    function = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function


def preload() -> None:
    """Load now what would be loaded in the middle of a transfer, when perhaps no file can be opened any more."""
    _sync_file_range()
    chunk_hasher()


def _errno() -> int:
    import ctypes

    return ctypes.get_errno()


def start_writing_back(fd: int, start: int, stop: int) -> None:
    """Have the disk begin with these bytes now, so that little is left for the ``fsync`` at the end. No promise."""
    if function := _sync_file_range():
        function(fd, start, stop - start, _WRITE)


def drop_cached(fd: int, start: int, stop: int) -> None:
    """Take these bytes out of the page cache once they are on the disk.

    Raises :class:`OSError` if they cannot get there: the kernel says so once, and a later ``fsync`` would succeed.
    """
    if function := _sync_file_range():
        failed = function(fd, start, stop - start, _WAIT_BEFORE | _WRITE | _WAIT_AFTER) != 0
        if failed and (number := _errno()) in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise OSError(number, os.strerror(number))
    with suppress(OSError):
        os.posix_fadvise(fd, start, stop - start, os.POSIX_FADV_DONTNEED)


def hash_file(path: str) -> tuple[Digest, ChunkSums]:
    """The digest and the chunk sums of a file, in one pass. Raises :class:`OSError`."""
    sha256 = hashlib.sha256()

    def pieces(fd: int) -> Iterator[bytes]:
        for piece in read_pieces(fd):
            sha256.update(piece)
            yield piece

    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        sums = ChunkSums.of(pieces(fd))
    finally:
        os.close(fd)
    return Digest(sha256.hexdigest()), sums


def fsync_dir(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class GroupSync:
    """Makes the names in a directory durable for several threads at once: those that wait share the next ``fsync``."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = Lock()
        self._begun = self._ended = self._failed = 0
        self._error: OSError | None = None

    def sync(self) -> None:
        """Return when a sync that began after this call has ended. Raises :class:`OSError` if it failed.

        A failed one is not tried again for those who waited for it: the second would claim success.
        """
        ticket = self._begun + 1
        with self._lock:
            if self._ended < ticket:
                self._begun += 1
                try:
                    fsync_dir(self._path)
                except OSError as error:
                    self._failed, self._error = self._begun, error
                self._ended = self._begun
            if self._failed >= ticket and self._error:
                raise self._error


def make_dirs(path: str) -> None:
    """Make a directory and its missing parents, each 0755 whatever the umask, and durable in its parent."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent != path:
        make_dirs(parent)
    with suppress(FileExistsError):  # another process made it, or it is a file: what comes next fails and says so
        os.mkdir(path)
        os.chmod(path, DIR_MODE)
        fsync_dir(parent)


def atomic_write(path: str, data: bytes, *, staging: str, durable: bool) -> None:
    """Replace a small file as a whole, through a staged file in the directory ``staging`` of the same file system.

    With ``durable`` the content and the name survive a power cut when this returns.
    """
    staged = os.path.join(staging, f"{os.urandom(16).hex()}.staged")
    fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            with suppress(OSError):  # says that somebody lives; see leftovers.py
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write_all(fd, data, 0)
            os.fchmod(fd, FILE_MODE)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(staged, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(staged)
        raise
    if durable:
        fsync_dir(os.path.dirname(path))
