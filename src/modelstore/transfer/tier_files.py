"""The files of a tier's directory: reading small ones, and what the file system says, translated once."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from modelstore.digest import Digest
from modelstore.errors import BlobNotFound, ModelStoreError, NoSpace, TierUnavailable
from modelstore.transfer.files import is_local, is_no_space

__all__ = ["TierFiles"]


class TierFiles:
    """A directory that errors are raised about in the name of a tier."""

    name: str
    root: str

    def read(self, path: str, op: str) -> bytes | None:
        """A small file, or None if there is none."""
        with self.errors(op):
            try:
                with open(path, "rb") as file:
                    return file.read()
            except FileNotFoundError:
                return None

    def names(self, path: str) -> list[str]:
        """What is in a directory; nothing if there is none."""
        with self.errors("list"):
            try:
                return os.listdir(path)
            except FileNotFoundError:
                return []

    @contextmanager
    def errors(self, op: str, missing: Digest | None = None) -> Iterator[None]:
        """Translate what the file system says, once."""
        try:
            yield
        except ModelStoreError:
            raise  # some are OSErrors too
        except OSError as error:
            if missing is not None and isinstance(error, FileNotFoundError):
                raise BlobNotFound(f"blob {missing} is not there", tier=self.name, op=op) from error
            raise self._unavailable(op, error) from error

    def _unavailable(self, op: str, error: OSError) -> NoSpace | TierUnavailable:
        if is_no_space(error):
            return NoSpace(f"{op}: no space left", tier=self.name, op=op, hint="free some space, or use another tier")
        hint = None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "make the directory writable for this user, or use another tier"
        elif error.errno == errno.ENOTDIR:
            hint = "name a directory"
        reason = (error.strerror or str(error)).lower()
        return TierUnavailable(f"{op}: {reason} ({error.filename or self.root})", tier=self.name, op=op, hint=hint)

    def existing(self) -> str:
        """The root, or the nearest directory above it that is there already."""
        place = self.root
        while not self._is_there(place):
            place = os.path.dirname(place)
        return place

    def _is_there(self, path: str) -> bool:
        with self.errors("stat"):
            try:
                os.stat(path)
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                return False
        return True

    def is_local(self) -> bool:
        """Whether a lock that can be had proves its owner dead."""
        with self.errors("stat"):
            return is_local(self.existing())

    def space(self) -> tuple[int, int]:
        """Bytes that the file system has, and those that may still be written."""
        with self.errors("free space"):
            found = os.statvfs(self.existing())
        return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize

    def sync(self, path: str) -> None:
        """Make the bytes of a file that another program wrote durable."""
        with self.errors("sync"):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
