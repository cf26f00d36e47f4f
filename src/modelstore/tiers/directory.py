"""The directory tier: local NVMe, a hostPath directory, a PVC. The format is that of docs/format.md."""

import json
import logging
import os
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, suppress
from typing import Final

from modelstore.config import TierConfig
from modelstore.digest import ChunkSums, Digest
from modelstore.errors import BlobCorrupt, BlobNotFound, TierUnavailable
from modelstore.manifest import Ref, SumsRecord, canonical_json
from modelstore.source_url import CacheKey
from modelstore.tiers.base import BlobInfo
from modelstore.transfer.area import StagingArea
from modelstore.transfer.files import (
    GroupSync,
    atomic_write,
    fsync_dir,
    hash_file,
    make_dirs,
    read_pieces,
)
from modelstore.transfer.staging import StagedFile
from modelstore.transfer.tier_files import TierFiles

__all__ = ["DirectoryTier"]

FORMAT_VERSION: Final = 1
_FOLDERS: Final = ("refs", "sums", "layouts", "locks", "quarantine", "ingest")

# bford.info/cachedir: backup programs pass over directories that hold this file.
_CACHEDIR_TAG: Final = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n"
    b"# This file is a cache directory tag created by modelstore.\n"
    b"# For information about cache directory tags see https://bford.info/cachedir/\n"
)

logger = logging.getLogger(__name__)


class DirectoryTier(TierFiles):
    """A directory that holds blobs and refs. Several processes, machines and users may share it.

    Nothing is touched before the first use; the directory is made by the first write. Reading needs no write access.
    """

    def __init__(self, config: TierConfig) -> None:
        self.name = config.name
        self.root = config.location.removeprefix("file://")
        self._may_write = config.mode == "rw"
        self._blobs = f"{self.root}/blobs"
        self._own = f"{self.root}/.modelstore"
        self._staging = f"{self._own}/ingest"
        self._area = StagingArea(self._staging, self)
        self._names = GroupSync(self._blobs)
        self._reserve = config.reserve
        self._opened = self._swept = False
        self._condemned: dict[Digest, int] = {}  # the inode in which wrong bytes were found

    # -- opening ---------------------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        self._open()
        if not self._may_write:
            return False
        # A root that another user made may be writable while what is in it is not. The slash: only a directory has it.
        inside = (f"{folder}/" for folder in (self._blobs, self._staging) if os.path.exists(folder))
        return all(os.access(folder, os.W_OK | os.X_OK) for folder in (f"{self.existing()}/", *inside))

    def _open(self) -> None:
        """Refuse a root that is not a directory, or whose format is newer than this code."""
        if self._opened:
            return
        raw = self.read(f"{self._own}/format.json", "open")
        if raw is not None:
            try:
                version = json.loads(raw)["version"]
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise TierUnavailable(
                    "its .modelstore/format.json is damaged", tier=self.name, op="open", retryable=False
                ) from error
            if type(version) is not int or version > FORMAT_VERSION:
                raise TierUnavailable(
                    f"its format is version {version!r:.20}, and this modelstore knows up to {FORMAT_VERSION}",
                    tier=self.name,
                    op="open",
                    hint="upgrade modelstore",
                    retryable=False,
                )
        self._opened = True

    def _prepare(self) -> None:
        """Make what writing needs; cheap when it is there."""
        self._open()
        marker = f"{self._own}/format.json"  # written last
        if self._swept and os.path.exists(marker) and os.path.isdir(self._blobs) and os.path.isdir(self._staging):
            return
        folders = [self._blobs, *(f"{self._own}/{name}" for name in _FOLDERS)]
        if os.path.exists(marker) and all(map(os.path.isdir, folders)):
            self._sweep()
            return
        with self.errors("prepare"):
            for folder in folders:
                make_dirs(folder)
            for path, data in (
                (f"{self.root}/CACHEDIR.TAG", _CACHEDIR_TAG),
                (marker, canonical_json({"version": FORMAT_VERSION})),
            ):
                if not os.path.exists(path):
                    atomic_write(path, data, staging=self._staging, durable=True)

    def _sweep(self) -> None:
        """Drop what killed processes left behind, once per tier object."""
        if not self._swept:
            self._swept = True
            self._area.sweep()

    # -- blobs -----------------------------------------------------------------------------------------------------

    def _blob_path(self, digest: Digest) -> str:
        return f"{self._blobs}/{digest.filename}"

    def _sums_path(self, digest: Digest) -> str:
        return f"{self._own}/sums/{digest.filename}.json"

    def _lstat(self, digest: Digest) -> os.stat_result | None:
        """The blob's file, or None. A link or a directory under a blob's name is no blob."""
        self._open()
        with self.errors("stat"):
            try:
                found = os.lstat(self._blob_path(digest))
            except (FileNotFoundError, NotADirectoryError):
                return None
        return found if stat.S_ISREG(found.st_mode) else None

    def stat(self, digest: Digest) -> BlobInfo:
        found = self._lstat(digest)
        if found is None:
            raise BlobNotFound(f"blob {digest} is not there", tier=self.name, op="stat")
        return BlobInfo(digest, found.st_size)

    def missing(self, digests: Collection[Digest]) -> set[Digest]:
        return {digest for digest in digests if not self._holds(digest)}

    def _holds(self, digest: Digest) -> bool:
        found = self._lstat(digest)
        if found is None:
            return False
        record = self._read_record(digest)
        if record and record.is_of(found):
            return True
        # There, but with no proof: put here by another program, restored from a backup, or changed since.
        try:
            self._check(digest, record.sums if record else None)
        except BlobNotFound:
            return False
        except BlobCorrupt as error:
            logger.warning("%s", error)
            if self.writable:
                with suppress(BlobNotFound):  # another process may have done so already
                    self.quarantine(digest)
            return False
        return True

    def verify(self, digest: Digest) -> None:
        self._check(digest, None)

    def _check(self, digest: Digest, sums: ChunkSums | None) -> None:
        """Read a whole blob against its chunk sums, or its digest if there are none, and record what was found."""
        with self.errors("verify", missing=digest):
            before = os.lstat(self._blob_path(digest))
            actual, actual_sums = hash_file(self._blob_path(digest)) if sums is None else self._rehash(digest, sums)
        if actual != digest:
            self._condemned[digest] = before.st_ino
            raise BlobCorrupt(f"blob {digest} holds bytes with another digest", tier=self.name, op="verify")
        if self.writable:
            if sums is None:  # perhaps another program put it here, and did not see to this
                self.sync(self._blob_path(digest))
                fsync_dir(self._blobs)
            self._write_record(digest, actual_sums, before)

    def _rehash(self, digest: Digest, sums: ChunkSums) -> tuple[Digest | None, ChunkSums]:
        fd = os.open(self._blob_path(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return (digest if sums.match(read_pieces(fd)) else None), sums
        finally:
            os.close(fd)

    def open_range(self, digest: Digest, start: int, stop: int) -> Iterator[bytes]:
        self._open()
        with self.errors("read", missing=digest):
            fd = os.open(self._blob_path(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                yield from read_pieces(fd, start, stop)
            finally:
                os.close(fd)

    def walk(self) -> Iterator[BlobInfo]:
        self._open()
        for name in self.names(self._blobs):
            digest = Digest.from_filename(name)
            found = self._lstat(digest) if digest else None
            if digest and found:
                yield BlobInfo(digest, found.st_size)

    def ingest(self, size: int, expected: Digest | None) -> AbstractContextManager[StagedFile]:
        return self.resume(size, expected, None, keep_cache=True)

    def resume(
        self, size: int, expected: Digest | None, identity: Digest | None, *, keep_cache: bool
    ) -> AbstractContextManager[StagedFile]:
        self._prepare()
        return self._area.begin(size, expected, identity, keep_cache=keep_cache)

    def resumable(self, identity: Digest, size: int) -> int:
        return self._area.resumable(identity, size)

    def finished(self, identity: Digest, size: int) -> Digest | None:
        return self._area.finished(identity, size)

    def forget(self, identity: Digest) -> None:
        self._area.forget(identity)

    def publish(self, staged: str, digest: Digest, sums: ChunkSums, found: os.stat_result) -> bool:
        """Give a finished staged file its name; False if the same blob was there already. Called by ``commit``."""
        current = self._lstat(digest)
        record = self._read_record(digest)
        if current and record and record.is_of(current):
            return False
        try:
            os.rename(staged, self._blob_path(digest))
        except FileNotFoundError:
            # Where locks lie, another process may have taken the staged file over, and published it.
            if self._holds(digest):
                return False
            raise
        self._names.sync()
        self._write_record(digest, sums, found)
        return True

    def quarantine(self, digest: Digest) -> None:
        self._prepare()
        aside = f"{self._own}/quarantine/{digest.filename}.{os.urandom(4).hex()}"
        with self.errors("quarantine", missing=digest):
            os.rename(self._blob_path(digest), aside)
            if self._condemned.get(digest, os.lstat(aside).st_ino) != os.lstat(aside).st_ino:
                # Not the file that was found to be wrong: another process has put a good one in its place meanwhile.
                with suppress(FileExistsError):
                    os.link(aside, self._blob_path(digest), follow_symlinks=False)
                os.unlink(aside)
                return
            with suppress(FileNotFoundError):
                os.unlink(self._sums_path(digest))

    def delete(self, digest: Digest) -> None:
        with self.errors("delete"):
            for path in (self._blob_path(digest), self._sums_path(digest)):
                with suppress(FileNotFoundError):
                    os.unlink(path)

    # -- sums ------------------------------------------------------------------------------------------------------

    def read_sums(self, digest: Digest) -> ChunkSums | None:
        self._open()
        record = self._read_record(digest)
        return record.sums if record else None

    def _read_record(self, digest: Digest) -> SumsRecord | None:
        """What was recorded about a blob. A damaged record is no record."""
        raw = self.read(self._sums_path(digest), "read sums")
        try:
            return SumsRecord.from_json(raw) if raw else None
        except ValueError:
            return None

    def _write_record(self, digest: Digest, sums: ChunkSums, found: os.stat_result) -> None:
        """Remember that a file was verified. Not durable, and not fatal: without a record a blob is hashed again."""
        verified = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = SumsRecord(sums, verified, found.st_ino, found.st_mtime_ns)
        self._write_quietly(self._sums_path(digest), record.to_json())

    # -- refs ------------------------------------------------------------------------------------------------------

    def _ref_path(self, key: CacheKey) -> str:
        return f"{self._own}/refs/{key}.json"

    def read_ref(self, key: CacheKey) -> Ref | None:
        self._open()
        raw = self.read(self._ref_path(key), "read ref")
        if raw is None:
            return None
        try:
            ref = Ref.from_json(raw)
            if ref.key != key:
                raise ValueError("it belongs to another key")
        except ValueError as error:
            logger.warning("tier %s: ref %s is damaged and not used: %s", self.name, key, error)
            return None
        return ref

    def write_ref(self, key: CacheKey, ref: Ref) -> None:
        self._prepare()
        with self.errors("write ref"):
            atomic_write(self._ref_path(key), ref.to_json(), staging=self._staging, durable=True)

    def refs(self) -> Iterator[tuple[CacheKey, Ref]]:
        self._open()
        for name in self.names(f"{self._own}/refs"):
            try:
                key = CacheKey(name.removesuffix(".json"))
            except ValueError:
                continue
            ref = self.read_ref(key)
            if ref:
                yield key, ref

    def delete_ref(self, key: CacheKey) -> None:
        with self.errors("delete ref"), suppress(FileNotFoundError):
            os.unlink(self._ref_path(key))
            fsync_dir(f"{self._own}/refs")

    def named_manifests(self) -> Iterator[bytes]:
        pending = [f"{self.root}/manifests"]
        while pending:
            folder = pending.pop()
            for name in self.names(folder):
                path = f"{folder}/{name}"
                if os.path.isdir(path) and not os.path.islink(path):
                    pending.append(path)
                elif (raw := self.read(path, "read manifest")) is not None:
                    yield raw

    # -- layouts ---------------------------------------------------------------------------------------------------

    def local_path(self, digest: Digest) -> str:
        self.stat(digest)
        return self._blob_path(digest)

    def model_path(self, key: CacheKey) -> str:
        return f"{self.root}/models/{key.short}"

    def owns(self, target: str) -> bool:
        return os.path.dirname(target) in (f"{self.root}/models", f"{os.path.realpath(self.root)}/models")

    def may_hold(self, target: str) -> bool:
        root = os.path.realpath(self.root)
        return self.owns(target) or not (target == root or target.startswith(f"{root}/"))

    def lock_path(self, key: CacheKey) -> str:
        self._prepare()
        return f"{self._own}/locks/{key}.lock"

    def _layout_path(self, target: str) -> str:
        return f"{self._own}/layouts/{Digest.of(os.fsencode(target)).hex}.json"

    def read_layout(self, target: str) -> bytes | None:
        return self.read(self._layout_path(target), "read layout")

    def write_layout(self, target: str, record: bytes | None) -> None:
        if not self.writable:
            return
        if record is not None:
            self._write_quietly(self._layout_path(target), record)
        else:
            with suppress(OSError):
                os.unlink(self._layout_path(target))

    def layouts(self) -> Iterator[bytes]:
        for name in self.names(f"{self._own}/layouts"):
            raw = self.read(f"{self._own}/layouts/{name}", "read layout")
            if raw is not None:
                yield raw

    # -- help ------------------------------------------------------------------------------------------------------

    def _write_quietly(self, path: str, data: bytes) -> None:
        try:
            self._prepare()
            atomic_write(path, data, staging=self._staging, durable=False)
        except (OSError, TierUnavailable) as error:
            logger.debug("tier %s: %s was not written: %s", self.name, path, error)

    def reclaim(self, keep: Collection[Digest]) -> None:
        self._area.reclaim(keep)

    def free_bytes(self) -> int:
        size, free = self.space()
        return max(0, free - self._reserve.of(size))
