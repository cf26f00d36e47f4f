"""What a tier is. The interface is small; what only some tiers can do are separate protocols."""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from modelstore.digest import ChunkSums, Digest
from modelstore.manifest import Ref
from modelstore.source_url import CacheKey

__all__ = [
    "BlobInfo",
    "BlobReader",
    "DeletableTier",
    "FileIngest",
    "Ingest",
    "LocalTier",
    "SupportsDelete",
    "SupportsFreeSpace",
    "SupportsLayouts",
    "SupportsLocalPath",
    "SupportsResume",
    "SupportsVerify",
    "Tier",
    "VerifiableTier",
]


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A blob that a tier holds, and its size in bytes."""

    digest: Digest
    size: int


class BlobReader(Protocol):
    """Reads blobs."""

    def stat(self, digest: Digest) -> BlobInfo:
        """Raises ``BlobNotFound``."""
        ...

    def missing(self, digests: Collection[Digest]) -> set[Digest]:
        """Those that the tier does not hold, in one call. A blob that is there with no proof of its bytes (no record,
        or changed since the record was made) is hashed first, and is missing if it is wrong."""
        ...

    def open_range(self, digest: Digest, start: int, stop: int) -> Iterator[bytes]:
        """The bytes ``[start, stop)``, in pieces of at most 1 MiB. Raises ``BlobNotFound``."""
        ...


class Ingest(Protocol):
    """One blob on its way into a tier. Nothing is visible before ``commit`` has returned."""

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Stage bytes, in any order, from any thread. Raises ``ValueError`` outside the declared size, ``NoSpace``."""
        ...

    def hash_to(self, stop: int) -> None:
        """Let SHA-256 run over the staged bytes up to ``stop``, all of which have been written. Never goes back."""
        ...

    @property
    def digest(self) -> Digest:
        """The digest of all staged bytes, once ``hash_to`` has reached the declared size."""
        ...

    def commit(self, sums: ChunkSums, verified: Digest | None = None) -> Digest:
        """Publish the blob under the digest that its staged bytes have, durably, and record its chunk sums.

        ``verified`` is their digest, if every chunk matched the sums that a trusted tier recorded with that digest:
        then SHA-256 is not run. Raises ``BlobCorrupt`` if the size or the expected digest does not match; then nothing
        was published. Publishing what is already there is no error.
        """
        ...


class FileIngest(Ingest, Protocol):
    """An ingest into a file, which can outlive its process."""

    def recall(self, index: int, start: int, stop: int) -> str | None:
        """The XXH3-128 of a chunk that an earlier attempt left, if it is now staged here and still has that sum."""
        ...

    def record(self, index: int, chunk_sum: str) -> None:
        """Note in the journal that a chunk is staged and has this XXH3-128. From any thread; never fails."""
        ...

    def settle(self, start: int, stop: int) -> None:
        """No more is done with these bytes before ``commit``: they may go to the disk, and leave the page cache."""
        ...

    def keep(self) -> None:
        """Leave what is journalled to the next attempt, if this one ends without ``commit``."""
        ...


@runtime_checkable
class Tier(BlobReader, Protocol):
    """Holds blobs and refs. Safe to use from several threads and processes at once.

    Every method may raise ``TierUnavailable``; those that write may raise ``NoSpace``.
    """

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def writable(self) -> bool:
        """Whether blobs and refs can be written now."""
        ...

    def ingest(self, size: int, expected: Digest | None) -> AbstractContextManager[Ingest]:
        """Begin to write a blob; leaving the block without ``commit`` discards it."""
        ...

    def read_sums(self, digest: Digest) -> ChunkSums | None:
        """The chunk sums recorded for a blob, or None."""
        ...

    def read_ref(self, key: CacheKey) -> Ref | None:
        """The ref of a key, or None. A damaged ref is no ref."""
        ...

    def write_ref(self, key: CacheKey, ref: Ref) -> None:
        """Set the ref of a key, durably and as a whole."""
        ...

    def refs(self) -> Iterator[tuple[CacheKey, Ref]]:
        """All refs, in no order."""
        ...

    def walk(self) -> Iterator[BlobInfo]:
        """All blobs, in no order; foreign files are passed over."""
        ...


@runtime_checkable
class SupportsLocalPath(Protocol):
    """Blobs are files that can be linked and mapped."""

    def local_path(self, digest: Digest) -> str:
        """The absolute path of a blob's file. Raises ``BlobNotFound``."""
        ...

    def read_sums(self, digest: Digest) -> ChunkSums | None:
        """As :meth:`Tier.read_sums`."""
        ...


@runtime_checkable
class SupportsLayouts(SupportsLocalPath, Protocol):
    """Models can be laid out from here, and it is remembered where."""

    def model_path(self, key: CacheKey) -> str:
        """The default target of a model: ``<root>/models/<short key>``."""
        ...

    def lock_path(self, key: CacheKey) -> str:
        """The file on which processes that fetch the same model may agree. Made if it can be."""
        ...

    def owns(self, target: str) -> bool:
        """Whether a target is one of the default ones, where nobody else keeps files."""
        ...

    def may_hold(self, target: str) -> bool:
        """False for a target that would lie among the tier's own files."""
        ...

    def read_layout(self, target: str) -> bytes | None:
        """The record of what was laid out at an absolute path, or None."""
        ...

    def write_layout(self, target: str, record: bytes | None) -> None:
        """Set the record, or drop it. Best effort: without one a target is proved by hashing it."""
        ...

    def layouts(self) -> Iterator[bytes]:
        """All records."""
        ...


@runtime_checkable
class SupportsFreeSpace(Protocol):
    """Space is limited, and it is known how much is left."""

    def free_bytes(self) -> int:
        """Bytes that can still be written before the reserve begins."""
        ...

    def reclaim(self, keep: Collection[Digest]) -> None:
        """Give back what processes that were killed had taken, as far as they are surely dead.

        What belongs to the identities in ``keep`` stays: it is about to be resumed.
        """
        ...


@runtime_checkable
class SupportsResume(Protocol):
    """A blob is staged in a file, and an attempt that was killed is gone on with."""

    def resume(
        self, size: int, expected: Digest | None, identity: Digest | None, *, keep_cache: bool
    ) -> AbstractContextManager[FileIngest]:
        """As :meth:`Tier.ingest`. ``identity`` is the same for attempts at the same bytes, and None if that cannot be
        told. Without ``keep_cache`` the bytes leave the page cache once they are on the disk."""
        ...

    def resumable(self, identity: Digest, size: int) -> int:
        """How many bytes an earlier attempt has taken that the next one will not take again."""
        ...

    def finished(self, identity: Digest, size: int) -> Digest | None:
        """The digest under which an attempt published the bytes of ``identity``, if it was killed before it could do
        more. The blob may be gone by now."""
        ...

    def forget(self, identity: Digest) -> None:
        """The bytes are published, and known to be: nothing need be left of attempts at them."""
        ...


@runtime_checkable
class SupportsVerify(Protocol):
    """Blobs can be hashed in place, and put aside."""

    def verify(self, digest: Digest) -> None:
        """Hash a blob with SHA-256. Raises ``BlobCorrupt``, ``BlobNotFound``."""
        ...

    def quarantine(self, digest: Digest) -> None:
        """Move a blob out of the way, keeping the evidence."""
        ...


@runtime_checkable
class SupportsDelete(Protocol):
    """Blobs and refs can be removed. What is not there is no error."""

    def delete(self, digest: Digest) -> None:
        """Remove a blob and its sums."""
        ...

    def delete_ref(self, key: CacheKey) -> None:
        """Remove a ref."""
        ...

    def named_manifests(self) -> Iterator[bytes]:
        """The bytes of the manifests under ``manifests/``, which keep their blobs as refs do."""
        ...


class LocalTier(SupportsLayouts, Tier, Protocol):
    """A tier that models can be laid out from."""


class VerifiableTier(SupportsVerify, Tier, Protocol):
    """A tier whose blobs can be verified in place."""


class DeletableTier(SupportsDelete, Tier, Protocol):
    """A tier that things can be removed from."""
