"""What a layout is."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from modelstore.manifest import Manifest
from modelstore.tiers.base import SupportsLayouts

__all__ = ["Layout"]


@runtime_checkable
class Layout(Protocol):
    """Arranges a model's files at a target, all or nothing."""

    def check_target(self, sizes: Mapping[str, int], blobs: SupportsLayouts, target: str) -> None:
        """Raise ``LayoutError`` if it can be told before a byte is fetched that ``target`` is in the way.

        ``sizes`` are the sizes in bytes of the files that the source offers, by path.
        """
        ...

    def is_complete(self, model: Manifest, blobs: SupportsLayouts, target: str) -> bool:
        """Whether ``target`` is already the model in this layout, as far as a record and stats can tell."""
        ...

    def materialize(self, model: Manifest, blobs: SupportsLayouts, target: str) -> str:
        """Make ``target`` (an absolute path) the model's directory and return the path an engine is to be given.

        A target that is already complete is left alone, even if that takes hashing it to find out. Raises
        ``LayoutError`` if the target holds something else or the engine would not load the model, and
        ``BlobNotFound`` if a blob is gone.
        """
        ...
