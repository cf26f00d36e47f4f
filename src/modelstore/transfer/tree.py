"""A model's directory, published as a whole: built in a hidden sibling, then renamed into place."""

import errno
import json
import logging
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from modelstore.digest import Digest
from modelstore.errors import BlobNotFound, LayoutError, ModelStoreError, NoSpace
from modelstore.manifest import FileEntry, canonical_json, check_version, typed
from modelstore.tiers.base import SupportsLayouts
from modelstore.transfer.files import DIR_MODE, fsync_dir, hash_file, is_no_space, make_dirs
from modelstore.transfer.link import Linker, exchange

__all__ = ["LayoutRecord", "Tree", "check_target", "find_damage", "is_untouched", "sweep_siblings", "withdraw"]

#: A sibling older than this was left by a process that was killed.
STALE_AFTER: Final = 24 * 3600.0
_SUFFIX: Final = ".modelstore"
_ROUNDS: Final = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LayoutRecord:
    """What was laid out at a target: which model, in which layout, and the identity of each file by its path.

    An identity is (inode, mtime in nanoseconds, size). While they match, the files are those that were published.
    ``damaged`` are files that have since been found to hold other bytes all the same.
    """

    target: str
    layout: str
    manifest: Digest
    files: Mapping[str, tuple[int, int, int]]
    damaged: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        value = {
            "version": 1,
            "target": self.target,
            "layout": self.layout,
            "manifest": str(self.manifest),
            "files": {path: list(identity) for path, identity in self.files.items()},
        }
        return canonical_json({**value, "damaged": list(self.damaged)} if self.damaged else value)

    @classmethod
    def from_json(cls, raw: bytes | None) -> "LayoutRecord | None":
        """Read a record; None for anything that is not one of version 1."""
        try:
            value: Any = json.loads(raw or b"null")
            check_version(value)
            files = {path: _three_numbers(numbers) for path, numbers in typed(value["files"], dict).items()}
            damaged = tuple(typed(path, str) for path in typed(value.get("damaged", []), list))
            manifest = Digest.parse(typed(value["manifest"], str))
            return cls(typed(value["target"], str), typed(value["layout"], str), manifest, files, damaged)
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    def matches(self, path: str, found: os.stat_result) -> bool:
        """Whether a file is still the one that was published under ``path``."""
        return self.files.get(path) == (found.st_ino, found.st_mtime_ns, found.st_size)


class Tree:
    """The files of one manifest at one target."""

    def __init__(
        self, blobs: SupportsLayouts, target: str, layout: str, manifest: Digest, files: Mapping[str, FileEntry]
    ) -> None:
        self._blobs = blobs
        self.target = target
        self._layout = layout
        self._manifest = manifest
        self._files = files
        self.record = LayoutRecord.from_json(blobs.read_layout(target))

    def is_recorded(self) -> bool:
        """Whether the target is complete, as far as a record and stats can tell; False if only hashing can."""
        record = self.record
        if record is None or record.manifest != self._manifest or record.damaged:
            return False
        try:
            return all(record.matches(path, os.lstat(f"{self.target}/{path}")) for path in self._files)
        except OSError:
            return False

    def publish(self) -> None:
        """Make the target hold exactly these files, durably, or raise and leave it as it was."""
        with _errors(self.target):
            sweep_siblings(self.target)
            for _ in range(_ROUNDS):
                if self.is_recorded() and self.record and self.record.layout == self._layout:
                    return
                try:
                    if self._publish_once():
                        return
                except ModelStoreError:
                    raise
                except FileNotFoundError:
                    logger.debug("%s went away while it was looked at", self.target)
                self.record = LayoutRecord.from_json(self._blobs.read_layout(self.target))
        raise LayoutError(f"{self.target} is being changed by somebody else", op="layout", retryable=True)

    def _publish_once(self) -> bool:
        """False if another process was faster: look again."""
        found = _list(self.target)
        if self._is_complete(found):
            self._remember({path: _identity(found[path]) for path in self._files})
            return True
        self._refuse_foreign(found)
        identities = self._replace()
        if identities is None:
            return False
        self._remember(identities)
        return True

    # -- what is there ----------------------------------------------------------------------------------------------

    def _is_complete(self, found: Mapping[str, os.stat_result]) -> bool:
        return found.keys() == self._files.keys() and all(
            self._holds(entry, found[path]) for path, entry in self._files.items()
        )

    def _holds(self, entry: FileEntry, found: os.stat_result) -> bool:
        """Whether the file at an entry's path has the entry's bytes: the blob itself, or proved by its digest."""
        if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size:
            return False
        if _is_blob(found, entry.digest, self._blobs):
            return True
        record = self.record
        if record and not record.damaged and record.manifest == self._manifest and record.matches(entry.path, found):
            return True
        return hash_file(f"{self.target}/{entry.path}")[0] == entry.digest

    def _refuse_foreign(self, found: Mapping[str, os.stat_result]) -> None:
        for path, state in found.items():
            if not _is_ours(self._blobs, self.target, self.record, path, state):
                raise _foreign(self.target, path)

    # -- making it --------------------------------------------------------------------------------------------------

    def _replace(self) -> dict[str, tuple[int, int, int]] | None:
        """Build the tree beside the target and put it there; the files' identities, or None if another was faster."""
        parent, name = os.path.split(self.target)
        make_dirs(parent)
        staged = f"{parent}/.{name}.{os.urandom(8).hex()}{_SUFFIX}"
        try:
            self._build(staged)
            # Of what was built, not of what is at the target by then: that may be another process's.
            identities = {path: _identity(os.lstat(f"{staged}/{path}")) for path in self._files}
            return identities if self._swap(staged) else None
        finally:
            _remove(staged)

    def _build(self, staged: str) -> None:
        folders = [f"{staged}{folder}" for folder in _folders(self._files)]
        for folder in folders:
            os.mkdir(folder)
            os.chmod(folder, DIR_MODE)
        linker = Linker()
        for path, entry in self._files.items():
            sums = self._blobs.read_sums(entry.digest) if linker.copies else None
            linker.place(self._blobs.local_path(entry.digest), f"{staged}/{path}", sums)
        linker.sync()
        for folder in reversed(folders):
            fsync_dir(folder)

    def _swap(self, staged: str) -> bool:
        parent = os.path.dirname(self.target)
        try:
            os.rename(staged, self.target)  # over nothing, or over an empty directory
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Not empty. Replace it only if it is still what was looked at.
            self._refuse_foreign(_list(self.target))
            try:
                if not exchange(staged, self.target):
                    _move_aside(staged, self.target)
            except OSError as again:
                if again.errno in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                    return False  # somebody else was faster
                raise
        fsync_dir(parent)
        return True

    def _remember(self, identities: Mapping[str, tuple[int, int, int]]) -> None:
        self.record = LayoutRecord(self.target, self._layout, self._manifest, identities)
        self._blobs.write_layout(self.target, self.record.to_json())


def _is_ours(
    blobs: SupportsLayouts, target: str, record: LayoutRecord | None, path: str, found: os.stat_result
) -> bool:
    """Whether a file at a target may be replaced: modelstore put it there, or the store holds the same bytes."""
    if record and (record.matches(path, found) or (blobs.owns(target) and path in record.files)):
        return True
    if not stat.S_ISREG(found.st_mode):
        return False
    try:
        blobs.local_path(hash_file(f"{target}/{path}")[0])
    except BlobNotFound:
        return False
    return True


def is_untouched(record: LayoutRecord) -> bool:
    """Whether a target holds what was published there and nothing else."""
    try:
        found = _list(record.target)
    except (OSError, LayoutError):
        return False
    return found.keys() == record.files.keys() and all(record.matches(path, state) for path, state in found.items())


def withdraw(target: str) -> None:
    """Remove a published directory: first its name, then its files, so that no half of it is ever seen."""
    parent, name = os.path.split(target)
    hidden = f"{parent}/.{name}.{os.urandom(8).hex()}{_SUFFIX}"
    with _errors(target), suppress(FileNotFoundError):
        os.rename(target, hidden)
        fsync_dir(parent)
        _remove(hidden)


def check_target(blobs: SupportsLayouts, target: str, sizes: Mapping[str, int]) -> None:
    """Refuse a target before a byte is fetched, if it can be told by then that nothing can be laid out there.

    ``sizes`` are those of the model's files by path. Raises ``LayoutError``.
    """
    with _errors(target):
        found = _list(target)
        record = LayoutRecord.from_json(blobs.read_layout(target))
        for path, state in found.items():
            could_be_it = stat.S_ISREG(state.st_mode) and sizes.get(path) == state.st_size
            if not could_be_it and not _is_ours(blobs, target, record, path, state):
                raise _foreign(target, path)
        if not found and os.path.ismount(target):
            raise LayoutError(f"{target} is a mount point", op="layout", hint="name a directory below it")
        place = os.path.dirname(target)
        while not os.path.exists(place):
            place = os.path.dirname(place)
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place)


def _foreign(target: str, path: str) -> LayoutError:
    return LayoutError(
        f"{target} already holds {path!r}, which modelstore did not put there",
        op="layout",
        hint="name another directory, or empty this one",
    )


def find_damage(record: LayoutRecord, files: Mapping[str, FileEntry], blobs: SupportsLayouts) -> LayoutRecord | None:
    """Hash the files of a laid-out model that are not the blobs themselves, which have been hashed already.

    Returns the record with what is damaged or gone noted in it, or None if all is well. A file that somebody changed
    since is not damage: it is not what was published any more.
    """
    damaged = []
    for path, entry in files.items():
        try:
            file = f"{record.target}/{path}"
            found = os.lstat(file)
            if not record.matches(path, found) or _is_blob(found, entry.digest, blobs):
                continue
            if hash_file(file)[0] != entry.digest:
                damaged.append(path)
        except OSError:
            damaged.append(path)
    return replace(record, damaged=tuple(damaged)) if damaged else None


def _is_blob(found: os.stat_result, digest: Digest, blobs: SupportsLayouts) -> bool:
    """Whether a file is a hard link of its blob."""
    try:
        return os.path.samestat(found, os.lstat(blobs.local_path(digest)))
    except BlobNotFound:
        return False


def _three_numbers(value: Any) -> tuple[int, int, int]:
    one, two, three = (typed(number, int) for number in typed(value, list))
    return one, two, three


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_mtime_ns, found.st_size


def _list(target: str) -> dict[str, os.stat_result]:
    """Everything below a target that is not a directory, by relative path; empty if there is no target."""
    try:
        mode = os.lstat(target).st_mode
    except FileNotFoundError:
        return {}
    if not stat.S_ISDIR(mode):
        raise LayoutError(f"{target} exists and is not a directory", op="layout", hint="name another directory")
    found: dict[str, os.stat_result] = {}
    pending = [""]
    while pending:
        folder = pending.pop()
        with os.scandir(f"{target}/{folder}") as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{folder}{entry.name}/")
                else:
                    found[folder + entry.name] = entry.stat(follow_symlinks=False)
    return found


def _folders(paths: Iterable[str]) -> list[str]:
    """Every folder of a tree, parents first: ``""`` for the root, then ``/a``, ``/a/b`` …"""
    folders = {""}
    for path in paths:
        while "/" in path:
            path = path.rpartition("/")[0]
            folders.add(f"/{path}")
    return sorted(folders)


def _move_aside(staged: str, target: str) -> None:
    """Two renames where one exchange is not to be had. Between them the target is absent, never half there."""
    old = staged.removesuffix(_SUFFIX) + f".old{_SUFFIX}"
    os.rename(target, old)
    try:
        os.rename(staged, target)
    except BaseException:
        with suppress(OSError):
            os.rename(old, target)
        if os.path.lexists(target):
            _remove(old)
        raise
    _remove(old)


def _remove(folder: str) -> None:
    import shutil  # a warm hit removes nothing

    shutil.rmtree(folder, ignore_errors=True)


def sweep_siblings(target: str) -> None:
    """Drop what killed processes left beside a target."""
    parent, name = os.path.split(target)
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            ours = entry.name.startswith(f".{name}.") and entry.name.endswith(_SUFFIX)
            if ours and time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE_AFTER:
                _remove(entry.path)


@contextmanager
def _errors(target: str) -> Iterator[None]:
    try:
        yield
    except ModelStoreError:
        raise  # some are OSErrors too
    except OSError as error:
        if is_no_space(error):
            raise NoSpace(f"no space left to lay the model out at {target}", op="layout", hint="free some") from error
        reason = (error.strerror or str(error)).lower()
        raise LayoutError(
            f"the model could not be laid out at {target}: {reason}", op="layout", hint="check its permissions"
        ) from error
