"""The ``vllm`` layout: a plain directory that vLLM loads from a local path, checked before it is published."""

import json
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Final

from modelstore.errors import LayoutError
from modelstore.formats.safetensors import read_header
from modelstore.manifest import FileEntry, Manifest
from modelstore.tiers.base import SupportsLayouts
from modelstore.transfer.tree import Tree, check_target

__all__ = ["VllmLayout"]

_INDEX: Final = "model.safetensors.index.json"
_MAX_INDEX: Final = 64 * 1024 * 1024
#: What else ends like weights, from vLLM's own list (vllm/model_executor/model_loader/weight_utils.py).
_NOT_WEIGHTS: Final = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")


class VllmLayout:
    """The ``files`` layout, if vLLM would load it: else ``LayoutError`` says what is missing."""

    def check_target(self, sizes: Mapping[str, int], blobs: SupportsLayouts, target: str) -> None:
        check_target(blobs, target, sizes)

    def is_complete(self, model: Manifest, blobs: SupportsLayouts, target: str) -> bool:
        tree = Tree(blobs, target, "vllm", model.digest, model.files)
        # A tree that was laid out as plain files may still be one that vLLM would not load.
        return tree.is_recorded() and tree.record is not None and tree.record.layout == "vllm"

    def materialize(self, model: Manifest, blobs: SupportsLayouts, target: str) -> str:
        problem = _find_problem(model.files, blobs)
        if problem:
            raise LayoutError(f"vLLM would not load this model: {problem}", op="layout")
        Tree(blobs, target, "vllm", model.digest, model.files).publish()
        return target


def _find_problem(files: Mapping[str, FileEntry], blobs: SupportsLayouts) -> str | None:
    """Why vLLM would not load these files, or None. Its rules are those of its default loader for a local path."""
    top = [path for path in files if "/" not in path]
    if "config.json" not in files and "params.json" not in files:
        return "there is no config.json (or params.json)"
    consolidated = [path for path in files if fnmatchcase(os.path.basename(path), "consolidated*.safetensors")]
    safetensors = [path for path in top if path.endswith(".safetensors") and path not in consolidated]
    others = [path for path in top if path.endswith((".bin", ".pt", ".pth")) and path not in _NOT_WEIGHTS]
    formats = {"consolidated safetensors": consolidated, "safetensors": safetensors, "PyTorch weights": others}
    present = [name for name, paths in formats.items() if paths]
    if not present:
        return "there are no weights (*.safetensors or *.bin) in its top directory"
    if len(present) > 1:
        return f"it has weights in more than one format ({' and '.join(present)}); select one with ?allow= or ?ignore="
    return _check_index(files, blobs, safetensors) or _check_headers(files, blobs, consolidated + safetensors)


def _check_index(files: Mapping[str, FileEntry], blobs: SupportsLayouts, shards: list[str]) -> str | None:
    """Whether every shard that the index names is there, and every shard is named."""
    if _INDEX not in files:
        return None if len(shards) < 2 else f"it has {len(shards)} shards and no {_INDEX}"
    entry = files[_INDEX]
    if entry.size > _MAX_INDEX:
        return f"{_INDEX} is {entry.size} bytes long"
    try:
        with open(blobs.local_path(entry.digest), "rb") as file:
            named = set(json.load(file)["weight_map"].values())
        missing = sorted(name for name in named if name not in files)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{_INDEX} is not an index of weights"
    if missing:
        return f"{_INDEX} names files that are not there: {', '.join(map(repr, missing[:5]))}"
    left_over = sorted(set(shards) - named)
    return f"{_INDEX} does not name {', '.join(left_over[:5])}" if left_over else None


def _check_headers(files: Mapping[str, FileEntry], blobs: SupportsLayouts, paths: list[str]) -> str | None:
    for path in paths:
        try:
            read_header(blobs.local_path(files[path].digest))
        except ValueError as error:
            return f"{path} is not sound: {error}"
    return None
