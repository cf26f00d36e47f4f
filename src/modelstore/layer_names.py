"""What the layers of manifests that others write are called as files: by an annotation, or by their media type."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

__all__ = ["layer_names"]

#: ModelPack's, and what that was called before (github.com/modelpack/model-spec, docs/annotations.md).
_FILEPATHS: Final = ("org.cncf.model.filepath", "org.cnai.model.filepath")
#: The OCI's (image-spec, annotations.md), which ORAS gives every file.
_TITLE: Final = "org.opencontainers.image.title"
#: ORAS's mark of a folder that it has packed.
_UNPACK: Final = "io.deis.oras.content.unpack"
_OLLAMA: Final = "application/vnd.ollama.image."
_DOCKER: Final = "application/vnd.docker.ai."
#: Without an annotation. Ollama: server/images.go; Docker: model-runner, pkg/distribution/types.
_KNOWN: Final = {
    _OLLAMA + "model": "model.gguf",
    _OLLAMA + "projector": "mmproj.gguf",
    _OLLAMA + "adapter": "adapter.gguf",
    _OLLAMA + "draft": "draft.gguf",
    _OLLAMA + "template": "template",
    _OLLAMA + "prompt": "template",
    _OLLAMA + "system": "system",
    _OLLAMA + "params": "params.json",
    _OLLAMA + "messages": "messages.json",
    _OLLAMA + "license": "LICENSE",
    _DOCKER + "gguf.v3": "model.gguf",
    _DOCKER + "safetensors": "model.safetensors",
    _DOCKER + "mmproj": "mmproj.gguf",
    _DOCKER + "license": "LICENSE",
    _DOCKER + "chat.template.jinja": "template.jinja",
    _DOCKER + "vllm.config.tar": "vllm-config",
}
_KITOPS: Final = re.compile(r"application/vnd\.kitops\.modelkit\.([a-z]{1,32})\.v1\.(?:tar|raw)(?:\+[a-z]{1,16})?")
_ARCHIVE: Final = re.compile(r"[./]tar(\+gzip|\+zstd)?")
_ENDINGS: Final = {None: ".tar", "+gzip": ".tar.gz", "+zstd": ".tar.zst"}


def layer_names(layers: Iterable[Mapping[str, Any]]) -> list[str | None]:
    """The path of each layer in the model's tree, None for one that is no file of it.

    Archives are kept as they are, and named as such. Of several layers that would be called the same for their media
    type the second is ``model-2.gguf``. Raises :class:`ValueError`, :class:`TypeError` for what is not a layer.
    """
    names = [_explicit(layer) for layer in layers]
    taken = {name.lower() for name in names if name is not None}
    numbers: dict[str, int] = {}
    for number, layer in enumerate(layers):
        if names[number] is None and (known := _by_type(layer["mediaType"])):
            names[number] = free = _free(known, taken, numbers)
            taken.add(free.lower())
    return names


def _explicit(layer: Mapping[str, Any]) -> str | None:
    annotations, media_type = layer.get("annotations") or {}, layer["mediaType"]
    if not isinstance(annotations, dict):
        raise ValueError("a layer's annotations are not an object")
    for key in _FILEPATHS:
        if key in annotations:
            return _ended(_text(annotations[key]), media_type)
    if _TITLE in annotations:
        # ORAS calls every single file's type an archive's; only what it has packed is one.
        title = _text(annotations[_TITLE])
        return _ended(title, media_type) if annotations.get(_UNPACK) == "true" else title
    if "name" in layer and media_type.startswith(_OLLAMA):
        return _text(layer["name"])
    return None


def _by_type(media_type: str) -> str | None:
    match = _KITOPS.fullmatch(media_type)
    name = match[1] if match else _KNOWN.get(media_type)
    return None if name is None else _ended(name, media_type)


def _ended(path: str, media_type: str) -> str:
    match = _ARCHIVE.search(media_type)
    if match is None or match.end() < len(media_type):
        return path
    ending = _ENDINGS[match[1]]
    return path if path.endswith(ending) else path.rstrip("/") + ending


def _free(name: str, taken: set[str], numbers: dict[str, int]) -> str:
    """``numbers`` is what each name was last numbered with, so that the next is found at once."""
    stem, dot, ending = name.partition(".")
    number, candidate = numbers.get(name, 1), name
    while candidate.lower() in taken:
        number += 1
        candidate = f"{stem}-{number}{dot}{ending}"
    numbers[name] = number
    return candidate


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a layer's name is not text")
    return value
