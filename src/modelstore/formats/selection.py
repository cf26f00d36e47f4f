"""Which of a repository's files an engine loads: one weight format, each weight once, and all that is not weights."""

import re
from collections.abc import Iterable
from typing import Final

__all__ = ["gguf_variants", "loadable"]

#: Weight formats by their extensions, best first: those that run no code when they are loaded before pickles.
_FORMATS: Final = (
    frozenset(("safetensors",)),
    frozenset(("gguf",)),
    frozenset(("bin",)),
    frozenset(("pt", "pth", "ckpt")),
    frozenset("h5 msgpack onnx onnx_data ot tflite npz ggml pkl mlmodel engine".split()),
)
_EXTENSIONS: Final = {extension: rank for rank, group in enumerate(_FORMATS) for extension in group}
_SHARD: Final = re.compile(r"(.*)-\d{5}-of-\d{5}\.gguf", re.IGNORECASE)


def loadable(paths: Iterable[str]) -> set[str]:
    """The paths to keep.

    The best weight format that is there, without what stands twice: ``original/`` and ``consolidated*``, if there are
    other weights of that format. Files that are no weights stay, but for those of ``original/``.
    """
    every = set(paths)
    ranks = {path: rank for path in every if (rank := _rank(path)) is not None and not _is_companion(path)}
    outside = {path: rank for path, rank in ranks.items() if not path.startswith("original/")}
    if outside:
        every = {path for path in every if not path.startswith("original/")}
        ranks = outside
    best = min(ranks.values(), default=None)
    weights = {path for path, rank in ranks.items() if rank == best}
    single = {path for path in weights if not _name(path).startswith("consolidated")}
    kept = {path for path in every if path not in ranks} | (single or weights)
    is_gguf = best is not None and "gguf" in _FORMATS[best]
    return {path for path in kept if is_gguf or not _is_companion(path)} if best is not None else kept


def gguf_variants(paths: Iterable[str]) -> list[list[str]]:
    """The GGUF files among the paths, each with its other shards. Projectors and imatrix files are none."""
    variants: dict[str, list[str]] = {}
    for path in sorted(paths):
        name = _name(path).lower()
        if name.endswith(".gguf") and not _is_companion(path):
            shard = _SHARD.fullmatch(path)
            variants.setdefault(shard[1] if shard else path, []).append(path)
    return list(variants.values())


def _is_companion(path: str) -> bool:
    """Whether a GGUF file is not a model: a projector that goes with one, or an importance matrix."""
    name = _name(path).lower()
    return name.endswith(".gguf") and ("mmproj" in name or "imatrix" in name)


def _rank(path: str) -> int | None:
    return _EXTENSIONS.get(_name(path).rpartition(".")[2].lower())


def _name(path: str) -> str:
    return path.rpartition("/")[2]
