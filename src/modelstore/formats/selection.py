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
_BIN: Final = 2
_PT: Final = 3
#: What a whole model is called in PyTorch's formats.
_WHOLE: Final = re.compile(r"(pytorch_)?model|consolidated|checkpoint|weights", re.IGNORECASE)
#: What quantised models are named for, imatrix or not.
_QUANT: Final = re.compile(r"(?<![a-z0-9])(i?q\d|tq\d|bf16|f16|f32|fp16|mxfp4)")
#: What training leaves beside the weights: it says nothing of their format.
_TRAINING: Final = re.compile(r"(training_args|optimizer|scheduler|rng_state|scaler)[^/]*\.(bin|pt|pth|safetensors)")
#: GGUF files that were cut up before there was a form for it.
_PARTS: Final = re.compile(r"(\.gguf)[.-](?:split-[a-z]|part-?\d+(?:of\d+)?)\Z")
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
    weights = {path for path, rank in ranks.items() if rank == best or (best == _BIN and _is_part(path, rank))}
    folders = {_folder(path) for path in weights if not _is_consolidated(path)}
    single = {path for path in weights if not (_is_consolidated(path) and _folder(path) in folders)}
    kept = {path for path in every if path not in ranks} | (single or weights)
    is_gguf = best is not None and "gguf" in _FORMATS[best]
    return {path for path in kept if is_gguf or not _is_companion(path)} if best is not None else kept


def gguf_variants(paths: Iterable[str]) -> list[list[str]]:
    """The GGUF files among the paths, each with its other shards. Projectors and imatrix files are none."""
    variants: dict[str, list[str]] = {}
    for path in sorted(paths):
        name = _name(path).lower()
        if _PARTS.sub(r"\1", name).endswith(".gguf") and not _is_companion(path):
            shard = _SHARD.fullmatch(path) or re.fullmatch(r"(.*\.gguf)[.-][^/.]+", path, re.IGNORECASE)
            variants.setdefault(shard[1] if shard else path, []).append(path)
    return list(variants.values())


def _is_part(path: str, rank: int) -> bool:
    """Whether a ``.pt`` file goes with ``.bin`` ones, as a linear layer beside a model, and is not the model again."""
    return rank == _PT and not _WHOLE.match(_name(path))


def _is_companion(path: str) -> bool:
    """Whether a GGUF file is not a model: a projector that goes with one, or an importance matrix."""
    name = _name(path).lower()
    return name.endswith(".gguf") and ("mmproj" in name or ("imatrix" in name and not _QUANT.search(name)))


def _rank(path: str) -> int | None:
    name = _name(path).lower().removesuffix(".index.json")  # an index goes with its shards
    if _TRAINING.match(name):
        return len(_FORMATS)
    return _EXTENSIONS.get(_PARTS.sub(r"\1", name).rpartition(".")[2])


def _is_consolidated(path: str) -> bool:
    return _name(path).startswith("consolidated")


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _name(path: str) -> str:
    return path.rpartition("/")[2]
