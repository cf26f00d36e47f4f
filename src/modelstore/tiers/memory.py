"""The memory tier: blobs in a dictionary, for tests and for embedding. Gone with the process."""

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from threading import Lock

from modelstore.config import TierConfig
from modelstore.digest import ChunkSums, Digest
from modelstore.errors import BlobCorrupt, BlobNotFound, TierUnavailable
from modelstore.manifest import Ref
from modelstore.source_url import CacheKey
from modelstore.tiers.base import BlobInfo

__all__ = ["MemoryTier"]

_PIECE = 1024 * 1024


class MemoryTier:
    """A tier in memory. Holds whole blobs, so it is for small ones."""

    def __init__(self, config: TierConfig | None = None) -> None:
        config = config or TierConfig("memory://", "memory")
        self.name = config.name
        self.writable = config.mode == "rw"
        self._blobs: dict[Digest, bytes] = {}
        self._sums: dict[Digest, ChunkSums] = {}
        self._refs: dict[CacheKey, Ref] = {}
        self._lock = Lock()
        self.quarantined: list[tuple[Digest, bytes]] = []

    def _blob(self, digest: Digest, op: str) -> bytes:
        try:
            return self._blobs[digest]
        except KeyError:
            raise BlobNotFound(f"blob {digest} is not there", tier=self.name, op=op) from None

    def _check_writable(self, op: str) -> None:
        if not self.writable:
            raise TierUnavailable(f"{op}: it is read-only", tier=self.name, op=op, retryable=False)

    def stat(self, digest: Digest) -> BlobInfo:
        return BlobInfo(digest, len(self._blob(digest, "stat")))

    def missing(self, digests: Collection[Digest]) -> set[Digest]:
        return {digest for digest in digests if digest not in self._blobs}

    def open_range(self, digest: Digest, start: int, stop: int) -> Iterator[bytes]:
        blob = memoryview(self._blob(digest, "read"))[start:stop]
        for position in range(0, len(blob), _PIECE):
            yield bytes(blob[position : position + _PIECE])

    def walk(self) -> Iterator[BlobInfo]:
        return iter([BlobInfo(digest, len(blob)) for digest, blob in list(self._blobs.items())])

    @contextmanager
    def ingest(self, size: int, expected: Digest | None) -> Iterator["_Buffer"]:
        self._check_writable("ingest")
        yield _Buffer(self, size, expected)

    def publish(self, digest: Digest, blob: bytes, sums: ChunkSums) -> None:
        """Keep a finished blob. Called by ``commit``."""
        with self._lock:
            self._blobs[digest] = blob
            self._sums[digest] = sums

    def read_sums(self, digest: Digest) -> ChunkSums | None:
        return self._sums.get(digest)

    def verify(self, digest: Digest) -> None:
        if Digest.of(self._blob(digest, "verify")) != digest:
            raise BlobCorrupt(f"blob {digest} holds bytes with another digest", tier=self.name, op="verify")

    def quarantine(self, digest: Digest) -> None:
        self.quarantined.append((digest, self._blob(digest, "quarantine")))
        self.delete(digest)

    def delete(self, digest: Digest) -> None:
        self._check_writable("delete")
        with self._lock:
            self._blobs.pop(digest, None)
            self._sums.pop(digest, None)

    def read_ref(self, key: CacheKey) -> Ref | None:
        return self._refs.get(key)

    def write_ref(self, key: CacheKey, ref: Ref) -> None:
        self._check_writable("write ref")
        self._refs[key] = ref

    def refs(self) -> Iterator[tuple[CacheKey, Ref]]:
        return iter(list(self._refs.items()))

    def delete_ref(self, key: CacheKey) -> None:
        self._check_writable("delete ref")
        self._refs.pop(key, None)

    def named_manifests(self) -> Iterator[bytes]:
        return iter(())


class _Buffer:
    """The memory tier's ingest."""

    def __init__(self, tier: MemoryTier, size: int, expected: Digest | None) -> None:
        self._tier = tier
        self._expected = expected
        self._data = bytearray(size)
        self._sha256 = hashlib.sha256()
        self._hashed = 0

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        if offset < 0 or offset + len(data) > len(self._data):
            raise ValueError(f"{len(data)} bytes at {offset} are outside a blob of {len(self._data)}")
        self._data[offset : offset + len(data)] = data

    def hash_to(self, stop: int) -> None:
        if stop > self._hashed:
            self._sha256.update(self._data[self._hashed : stop])
            self._hashed = stop

    @property
    def digest(self) -> Digest:
        if self._hashed != len(self._data):
            raise ValueError(f"only {self._hashed} of {len(self._data)} bytes are hashed")
        return Digest(self._sha256.hexdigest())

    def commit(self, sums: ChunkSums, verified: Digest | None = None) -> Digest:
        name = self._tier.name
        if sums.size != len(self._data):
            raise BlobCorrupt(f"sums of {sums.size} bytes for a blob of {len(self._data)}", tier=name, op="commit")
        if verified is None:
            self.hash_to(len(self._data))
        digest = verified or self.digest
        if self._expected is not None and digest != self._expected:
            raise BlobCorrupt(f"the staged bytes have {digest}, not {self._expected}", tier=name, op="commit")
        self._tier.publish(digest, bytes(self._data), sums)
        return digest
