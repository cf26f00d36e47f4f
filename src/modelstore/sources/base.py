"""What a source is: it resolves a URL to pinned files, and reads ranges of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from modelstore.digest import Digest
from modelstore.manifest import Manifest
from modelstore.source_url import SourceURL

__all__ = ["RangesIgnored", "Resolved", "Source", "SourceFile"]


class RangesIgnored(Exception):
    """The source answered a range with the whole file; read it in one stream from 0 instead."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file as the source offers it now.

    ``path`` in the model's tree, ``size`` in bytes, ``digest`` if the source promises one. ``validator`` is text by
    which the same bytes can be recognised later (a strong ETag, a modification time), None if there is no such thing.
    ``ranges`` is whether ranges may be asked for. ``git_sha1`` is the bytes' name as a git blob (40 hex digits), if the
    source has that and no digest: the file is checked by it on the way in. ``handle`` belongs to the source.
    """

    path: str
    size: int
    digest: Digest | None = None
    validator: str | None = None
    ranges: bool = True
    git_sha1: str | None = None
    handle: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A source URL pinned: its files as they are now, and the revision they belong to, if the source has revisions.

    ``tree`` is whether the URL names a tree, of which a pin is the manifest digest, and not a single file.

    ``manifest`` is the source's own, if it has one: kept byte for byte. Then ``files`` are those that it lists, each
    with its digest, and ``others`` the blobs that it needs besides, such as its config.
    """

    files: tuple[SourceFile, ...]
    revision: str | None = None
    tree: bool = False
    manifest: Manifest | None = None
    others: tuple[SourceFile, ...] = ()


@runtime_checkable
class Source(Protocol):
    """Reads models of one kind of URL. Safe to use from several threads at once."""

    def resolve(self, url: SourceURL) -> Resolved:
        """Pin the URL and list its files.

        Raises a :class:`~modelstore.errors.SourceError`, ``ConfigError``, or ``BlobArchived``.
        """
        ...

    def open_range(self, file: SourceFile, start: int, stop: int) -> Iterator[bytes]:
        """The bytes ``[start, stop)`` of a resolved file, in pieces of at most 1 MiB.

        Raises ``SourceChanged`` if the file is no longer the one that was resolved, ``SourceUnavailable`` if the
        source fails, and :class:`RangesIgnored` if only the whole file can be had. May simply end early, or run over:
        the engine counts.
        """
        ...

    def close(self) -> None:
        """Let go of connections; reads under way in other threads end soon."""
        ...
