"""What killed processes left in a staging directory: found again to go on with, or removed.

``<identity, 32 hex>.<random>.staged`` and ``….journal`` belong together; a staged file without an identity, and what
small files are written through, is ``<random>.staged``.
"""

import fcntl
import operator
import os
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from modelstore.digest import CHUNK_SIZE, Digest
from modelstore.transfer import limits
from modelstore.transfer.journal import read_journal

__all__ = [
    "JOURNAL",
    "STAGED",
    "Leftover",
    "find_finished",
    "find_leftovers",
    "forget",
    "staged_name",
    "sweep_staged",
    "take_over",
]

STAGED: Final = ".staged"
JOURNAL: Final = ".journal"
_RANDOM: Final = 16  # bytes


def staged_name(identity: Digest | None) -> str:
    """A new name for a staged file of these bytes, without its ending."""
    tag = f"{identity.hex[:32]}." if identity else ""
    return f"{tag}{os.urandom(_RANDOM).hex()}"


@dataclass(frozen=True, slots=True)
class Leftover:
    """A staged file, without the ending of its path, the chunks that its journal names, and how many bytes they are."""

    path: str
    chunks: Mapping[int, str]
    bytes: int

    @property
    def is_dead(self) -> bool:
        """Whether nobody holds its lock now."""
        return _is_unlocked(self.path + STAGED)


def find_leftovers(folder: str, identity: Digest, size: int) -> list[Leftover]:
    """Staged files of the same bytes with a journal that can be read, fullest first. Some may be in use."""
    found = []
    with suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(f"{identity.hex[:32]}.") and name.endswith(STAGED):
                path = f"{folder}/{name.removesuffix(STAGED)}"
                if chunks := read_journal(path + JOURNAL, identity, size).chunks:
                    found.append(Leftover(path, chunks, sum(min(CHUNK_SIZE, size - n * CHUNK_SIZE) for n in chunks)))
    return sorted(found, key=lambda leftover: len(leftover.chunks), reverse=True)


def find_finished(folder: str, identity: Digest, size: int) -> Digest | None:
    """The digest under which these bytes were published by a process that was killed before it could say so."""
    for path in _journals(folder, identity):
        if done := read_journal(path, identity, size).done:
            return done
    return None


def forget(folder: str, identity: Digest, idle: float) -> None:
    """Remove what is left of bytes that are published and known to be: journals, and staged files that nobody holds and
    that were not written for ``idle`` seconds."""
    for path in _journals(folder, identity):
        _remove(path)
    for path, age, _ in _files(folder, time.time()):
        if os.path.basename(path).startswith(f"{identity.hex[:32]}.") and age >= idle and _is_unlocked(path):
            _remove(path, path.removesuffix(STAGED) + JOURNAL)


def _remove(*paths: str) -> None:
    for path in paths:
        with suppress(OSError):
            os.unlink(path)


def _journals(folder: str, identity: Digest) -> list[str]:
    """The journals of these bytes that have no staged file beside them."""
    with suppress(OSError):
        names = set(os.listdir(folder))
        return [
            f"{folder}/{name}"
            for name in names
            if name.startswith(f"{identity.hex[:32]}.")
            and name.endswith(JOURNAL)
            and name.removesuffix(JOURNAL) + STAGED not in names
        ]
    return []


def take_over(path: str, new: str, size: int) -> int | None:
    """Make a dead process's staged file one's own: lock it and give it a new name. Returns it open, or None.

    Only where ``flock`` proves death, on a local file system: whoever still has the file open keeps the lock, be it
    paused or a child of the one that was killed. After the rename nobody who saw the old name can mean this file.
    """
    with suppress(OSError):
        fd = _open_dead(path + STAGED, size)
        if fd is not None:
            try:
                os.rename(path + STAGED, new + STAGED)
                if os.path.samestat(os.fstat(fd), os.lstat(new + STAGED)):
                    os.utime(fd)  # it is in use again, however long its chunks take to be hashed
                    return fd
            except OSError:
                os.close(fd)
                raise
            os.close(fd)
    return None


def _open_dead(path: str, size: int) -> int | None:
    """A plain file of our own that nobody holds, opened to read and write, and locked."""
    reader = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(reader)
        ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1
        if not ours or found.st_size > size or not _lock(reader):
            return None
        if not os.path.samestat(os.lstat(path), found):
            return None  # it was published between the two
        os.fchmod(reader, 0o600)  # killed while it was published, it may be read-only already
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        fcntl.flock(reader, fcntl.LOCK_UN)
        if _lock(fd) and os.path.samestat(os.fstat(fd), found):
            return fd
        os.close(fd)
        return None
    finally:
        os.close(reader)


def _lock(fd: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def sweep_staged(folder: str, idle: float, keep: Collection[Digest] | None = None) -> None:
    """Remove what is of no use: staged files that nobody holds and that were not written for ``idle`` seconds.

    Those with a journal are kept for a day, and no more than a few of them, so that they can be resumed; with ``keep``,
    only the fullest of each of these identities. Where locks lie, a writer that paused for as long loses its file; its
    commit then fails and nothing is published.
    """
    now = time.time()
    wanted = None if keep is None else {identity.hex[:32] for identity in keep}
    kept = 0
    order = operator.itemgetter(1) if wanted is None else operator.itemgetter(2)
    for path, age, _ in sorted(_files(folder, now), key=order):
        if age < idle or (age <= limits.STALE_AFTER and not _is_unlocked(path)):
            continue
        tag, dot, _ = os.path.basename(path).partition(".")
        journalled = dot and os.path.exists(path.removesuffix(STAGED) + JOURNAL)
        resumable = kept < limits.MOST_STAGED if wanted is None else tag in wanted
        if journalled and resumable and age <= limits.STALE_AFTER:
            kept += 1
            if wanted:
                wanted.discard(tag)
            continue
        _remove(path, path.removesuffix(STAGED) + JOURNAL)
    _sweep_journals(folder, now)


def _files(folder: str, now: float) -> Iterator[tuple[str, float, int]]:
    """The staged files in a directory, the seconds since they were written, and how empty they are."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(STAGED):
                with suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    yield entry.path, now - found.st_mtime, -_journal_size(entry.path)


def _journal_size(staged: str) -> int:
    try:
        return os.lstat(staged.removesuffix(STAGED) + JOURNAL).st_size
    except OSError:
        return 0


def _sweep_journals(folder: str, now: float) -> None:
    """Remove journals whose staged file is long gone: it was published, or taken over."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            path = entry.path.removesuffix(JOURNAL)
            if path != entry.path and not os.path.lexists(path + STAGED):
                with suppress(OSError):
                    if now - entry.stat(follow_symlinks=False).st_mtime > limits.STALE_AFTER:
                        os.unlink(entry.path)


def _is_unlocked(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return _lock(fd, fcntl.LOCK_SH)  # on NFS an exclusive one wants a file that is open to be written
    finally:
        os.close(fd)
