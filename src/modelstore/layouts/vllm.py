"""The ``vllm`` layout: a plain directory that vLLM loads from a local path, checked before it is published."""

import json
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from modelstore.errors import LayoutError, ModelStoreError
from modelstore.formats.safetensors import read_header
from modelstore.manifest import FileEntry, Manifest
from modelstore.tiers.base import SupportsLayouts
from modelstore.transfer.tree import Tree, check_target

__all__ = ["VllmLayout"]

_INDEXES: Final = ("model.safetensors.index.json", "consolidated.safetensors.index.json")
_MAX_JSON: Final = 64 * 1024 * 1024
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
        try:
            problem = _find_problem(model.files, blobs)
        except ModelStoreError:
            raise
        except OSError as error:
            problem = f"{error.filename} cannot be read: {error.strerror}"
        if problem:
            raise LayoutError(f"vLLM would not load this model: {problem}", op="layout")
        Tree(blobs, target, "vllm", model.digest, model.files).publish()
        return target


def _find_problem(files: Mapping[str, FileEntry], blobs: SupportsLayouts) -> str | None:
    """Why vLLM would not load these files, or None. Its rules are those of its default loader for a local path."""
    configs = [path for path in ("config.json", "params.json") if path in files]
    if not configs:
        return "there is no config.json (or params.json)"
    for path in configs:
        if not isinstance(_read_json(files[path], blobs), dict):
            return f"{path} is not a JSON object"
    consolidated = [path for path in files if fnmatchcase(os.path.basename(path), "consolidated*.safetensors")]
    top = [path for path in files if "/" not in path]
    safetensors = [path for path in top if path.endswith(".safetensors") and path not in consolidated]
    others = [path for path in top if path.endswith((".bin", ".pt")) and path not in _NOT_WEIGHTS]
    formats = {"consolidated safetensors": consolidated, "safetensors": safetensors, "PyTorch weights": others}
    present = [name for name, paths in formats.items() if paths]
    if not any("/" not in path for path in (*consolidated, *safetensors, *others)):
        return "there are no weights (*.safetensors or *.bin) in its top directory"
    if len(present) > 1:
        return f"it has weights in more than one format ({' and '.join(present)}); select one with ?allow= or ?ignore="
    return _check_indexes(files, blobs) or _check_headers(files, blobs, consolidated + safetensors)


def _check_indexes(files: Mapping[str, FileEntry], blobs: SupportsLayouts) -> str | None:
    """Whether every shard that an index names is there. Shards that no index names are not loaded, and do no harm."""
    for index in _INDEXES:
        if index not in files:
            continue
        content = _read_json(files[index], blobs)
        named = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            return f"{index} is not an index of weights"
        missing = sorted({name for name in named.values() if name not in files})
        if missing:
            return f"{index} names files that are not there: {', '.join(map(repr, missing[:5]))}"
    return None


def _read_json(entry: FileEntry, blobs: SupportsLayouts) -> Any:
    """A JSON file's content; None if it is not one, or larger than any index is."""
    if entry.size > _MAX_JSON:
        return None
    with open(blobs.local_path(entry.digest), "rb") as file:
        try:
            return json.load(file)
        except (ValueError, RecursionError):
            return None


def _check_headers(files: Mapping[str, FileEntry], blobs: SupportsLayouts, paths: list[str]) -> str | None:
    for path in paths:
        try:
            read_header(blobs.local_path(files[path].digest))
        except ValueError as error:
            return f"{path} is not sound: {error}"
    return None
