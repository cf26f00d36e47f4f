"""The ``files`` layout: the tree as the manifest lists it."""

from collections.abc import Mapping

from modelstore.errors import LayoutError
from modelstore.manifest import Manifest
from modelstore.tiers.base import SupportsLayouts
from modelstore.transfer.tree import Tree, check_target

__all__ = ["FilesLayout"]


class FilesLayout:
    """A plain directory, file by file as the source has them."""

    def check_target(self, sizes: Mapping[str, int], blobs: SupportsLayouts, target: str) -> None:
        check_target(blobs, target, sizes)

    def is_complete(self, model: Manifest, blobs: SupportsLayouts, target: str) -> bool:
        return Tree(blobs, target, "files", model.digest, model.files).is_recorded()

    def materialize(self, model: Manifest, blobs: SupportsLayouts, target: str) -> str:
        files = model.files
        if not files:
            raise LayoutError(
                f"the manifest {model.digest} names no files", op="layout", hint="it needs another layout than files"
            )
        Tree(blobs, target, "files", model.digest, files).publish()
        return target
