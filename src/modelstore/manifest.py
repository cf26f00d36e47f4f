"""The list of a model's files, an OCI image manifest, and the ref that names it. Pure values: no I/O.

The manifest of anything that is not already one is an OCI artifact in the form of CNCF ModelPack
(github.com/modelpack/model-spec, docs/spec.md), one uncompressed layer per file. No time and no source goes into it,
so the same files have the same manifest digest wherever they came from.
"""

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, TypeVar

from modelstore.digest import ChunkSums, Digest
from modelstore.layer_names import layer_names
from modelstore.source_url import CacheKey

__all__ = [
    "Descriptor",
    "FileEntry",
    "Manifest",
    "Ref",
    "SumsRecord",
    "canonical_json",
    "check_paths",
    "check_version",
    "typed",
]

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE: Final = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.cncf.model.config.v1+json"
FILEPATH: Final = "org.cncf.model.filepath"

T = TypeVar("T")

#: A manifest is read into memory: 4 MiB is the limit that OCI registries set (distribution-spec, "Pushing Manifests").
MAX_MANIFEST_SIZE: Final = 4 * 1024 * 1024

_WEIGHTS: Final = frozenset(
    "safetensors gguf ggml bin pt pth ckpt onnx h5 msgpack npz npy pkl tflite tensors engine ot mlmodel".split()
)
_DOCS: Final = frozenset("md rst pdf png jpg jpeg gif svg webp".split())
_DOC_NAMES: Final = ("readme", "license", "licence", "notice", "copying", "use_policy", "changelog")
_CODE: Final = frozenset("py sh ipynb c cc cpp cu h js ts go rs lua".split())


def canonical_json(value: Any) -> bytes:
    """The one way a value is written: sorted keys, no spaces, UTF-8, no final newline."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def typed(value: Any, kind: type[T]) -> T:
    """A value out of JSON that must be of exactly this type: ``True`` is no number. Raises :class:`ValueError`."""
    if type(value) is not kind:
        raise ValueError(f"{value!r:.40} is not of the type {kind.__name__}")
    return value


def check_version(value: Any) -> None:
    """Refuse an object of the format (docs/format.md) that is not of version 1. Raises :class:`ValueError`."""
    if typed(value["version"], int) != 1:
        raise ValueError(f"its version is {value['version']}, not 1")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a model: its path in the tree, the digest and the size of its bytes."""

    path: str
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob as a manifest lists it. ``path`` is what a layer is called as a file of the tree, if it is one."""

    media_type: str
    digest: Digest
    size: int
    path: str | None = None

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        return value if self.path is None else {**value, "annotations": {FILEPATH: self.path}}

    @classmethod
    def from_json(cls, value: Any, path: str | None = None) -> "Descriptor":
        """Read a descriptor; ``path`` is what the layer is called. Raises :class:`ValueError` and its like."""
        media_type, size = value["mediaType"], value["size"]
        if not isinstance(media_type, str) or type(size) is not int or size < 0:
            raise ValueError("a descriptor has no media type or no size")
        return cls(media_type, Digest.parse(value["digest"]), size, path)


@dataclass(frozen=True)
class Manifest:
    """An OCI image manifest: its bytes as they are stored, and what they say."""

    raw: bytes
    config: Descriptor
    layers: tuple[Descriptor, ...]

    @classmethod
    def build(cls, files: Iterable[FileEntry]) -> "tuple[Manifest, bytes]":
        """The manifest of a plain tree, and the bytes of its config.

        Raises :class:`ValueError` for paths that :func:`check_paths` refuses.
        """
        layers = tuple(
            Descriptor(_media_type(file.path), file.digest, file.size, file.path)
            for file in sorted(files, key=lambda file: file.path.encode())
        )
        diff_ids = [str(layer.digest) for layer in layers]
        config = canonical_json({"config": {}, "descriptor": {}, "modelfs": {"diffIds": diff_ids, "type": "layers"}})
        value = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": Descriptor(CONFIG_TYPE, Digest.of(config), len(config)).to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
        raw = canonical_json(value)
        if len(raw) > MAX_MANIFEST_SIZE:
            raise ValueError(f"a manifest of {len(layers)} files is larger than {MAX_MANIFEST_SIZE} bytes")
        return cls.parse(raw), config

    @classmethod
    def parse(cls, raw: bytes) -> "Manifest":
        """Read a manifest; fields that are not known are ignored. Raises :class:`ValueError` if it is not one."""
        try:
            value = json.loads(raw.decode())  # bytes could be of other encodings, too
            listed = typed(value["layers"], list)
            layers = tuple(map(Descriptor.from_json, listed, layer_names(listed)))
            config = Descriptor.from_json(value["config"])
            if value["schemaVersion"] != 2 or not layers:
                raise ValueError("it is not an image manifest of schema version 2 with layers")
            if len({(blob.digest, blob.size) for blob in (*layers, config)}) > len(
                {blob.digest for blob in (*layers, config)}
            ):
                raise ValueError("it lists the same digest with two sizes")
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"not an OCI image manifest: {error!r}") from error
        check_paths(layer.path for layer in layers if layer.path is not None)
        return cls(raw, config, layers)

    @cached_property
    def digest(self) -> Digest:
        """The manifest's own digest: SHA-256 of its bytes as stored."""
        return Digest.of(self.raw)

    @cached_property
    def files(self) -> dict[str, FileEntry]:
        """The files by path, in the manifest's order. Layers without a path are not files of the tree."""
        return {
            layer.path: FileEntry(layer.path, layer.digest, layer.size)
            for layer in self.layers
            if layer.path is not None
        }

    @property
    def blobs(self) -> dict[Digest, int]:
        """Every blob the model needs beside the manifest itself, each once, with its size."""
        return {blob.digest: blob.size for blob in (*self.layers, self.config)}

    @property
    def size(self) -> int:
        """Bytes of the model's files."""
        return sum(layer.size for layer in self.layers)

    def satisfies(self, pin: Digest) -> bool:
        """Whether ``#sha256=`` names this manifest, or the only file in it."""
        return pin == self.digest or (len(self.layers) == 1 and pin == self.layers[0].digest)


@dataclass(frozen=True, slots=True)
class Ref:
    """The mutable record of a source URL: cache key → manifest digest.

    ``source`` is the URL that was hashed. ``revision`` is what the source was pinned to, if it has revisions.
    ``validators`` holds, by path, what the source gave to recognise the file again (an ETag, a time).
    ``fetched`` is when the manifest was published, ``checked`` when the source last confirmed it (RFC 3339, UTC).
    """

    source: str
    manifest: Digest
    revision: str | None
    validators: Mapping[str, str]
    fetched: str
    checked: str

    def to_json(self) -> bytes:
        value = {
            "version": 1,
            "source": self.source,
            "manifest": str(self.manifest),
            "revision": self.revision,
            "validators": dict(self.validators),
            "fetched": self.fetched,
            "checked": self.checked,
        }
        return canonical_json(value)

    @classmethod
    def from_json(cls, raw: bytes) -> "Ref":
        """Read a ref; unknown fields are ignored. Raises :class:`ValueError` if it is not one of version 1."""
        try:
            value = json.loads(raw)
            check_version(value)
            validators = typed(value["validators"], dict)
            revision = value["revision"]
            return cls(
                source=typed(value["source"], str),
                manifest=Digest.parse(typed(value["manifest"], str)),
                revision=None if revision is None else typed(revision, str),
                validators={path: typed(validator, str) for path, validator in validators.items()},
                fetched=typed(value["fetched"], str),
                checked=typed(value["checked"], str),
            )
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a ref: {error!r}") from error

    @property
    def key(self) -> CacheKey:
        """The cache key of ``source``."""
        return CacheKey(Digest.of(self.source.encode()).hex)


@dataclass(frozen=True, slots=True)
class SumsRecord:
    """What is kept about a blob whose SHA-256 was verified: its chunk sums, and which file they were taken from.

    ``verified`` is when (RFC 3339, UTC). ``inode`` and ``mtime_ns`` are None where a tier has no files.
    """

    sums: ChunkSums
    verified: str
    inode: int | None = None
    mtime_ns: int | None = None

    def to_json(self) -> bytes:
        value: dict[str, Any] = {
            "version": 1,
            "algorithm": "xxh3-128",
            "size": self.sums.size,
            "chunk_size": self.sums.chunk_size,
            "chunks": list(self.sums.chunks),
            "verified": {"at": self.verified, "how": "sha256"},
        }
        if self.inode is not None:
            value["file"] = {"inode": self.inode, "mtime_ns": self.mtime_ns}
        return canonical_json(value)

    def is_of(self, found: os.stat_result) -> bool:
        """Whether a file is the one that was verified: enough to notice accidents, while the digest is the proof."""
        return (self.sums.size, self.mtime_ns, self.inode) == (found.st_size, found.st_mtime_ns, found.st_ino)

    @classmethod
    def from_json(cls, raw: bytes) -> "SumsRecord":
        """Read a record; unknown fields are ignored. Raises :class:`ValueError` if it is not one of version 1."""
        try:
            value = json.loads(raw)
            check_version(value)
            if value["algorithm"] != "xxh3-128":
                raise ValueError("it is of another algorithm")
            chunks = tuple(typed(chunk, str) for chunk in typed(value["chunks"], list))
            sums = ChunkSums(typed(value["size"], int), chunks, typed(value["chunk_size"], int))
            at = typed(value["verified"]["at"], str)
            if value.get("file") is None:
                return cls(sums, at)
            return cls(sums, at, typed(value["file"]["inode"], int), typed(value["file"]["mtime_ns"], int))
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a record of chunk sums: {error!r}") from error


_BAD_IN_PATH = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
#: What nearly every path is like, seen in one look; any other is looked at name by name.
_PLAIN = re.compile(r"\w[\w.-]{0,254}(?:/\w[\w.-]{0,254})*", re.ASCII)
#: Parts of a path. Each folder is a name to make, to compare and to keep in memory.
_DEEPEST: Final = 32
_DRIVE = re.compile(r"[A-Za-z]:")


def check_paths(paths: Iterable[str]) -> None:
    """Refuse paths that could leave the tree, or that could not stand beside each other in every file system.

    Allowed are relative paths of ``/``-separated names: no ``..``, ``.`` or empty name, no backslash, drive letter or
    control character, nothing that is not UTF-8, no name over 255 bytes, no two paths that differ only in case or
    Unicode form, no path that is both a file and a directory. Raises :class:`ValueError`.
    """
    seen: dict[str, str] = {}
    for path in paths:
        _check_path(path)
        folded = _fold(path)
        if folded in seen:
            other = seen[folded]
            same = "the path is listed twice" if other == path else "the paths differ only in case or Unicode form"
            raise ValueError(f"{same}: {other!r} and {path!r}")
        seen[folded] = path
    # Sorted, what is below a path comes right after it; keeping every folder of every path could take GiB.
    ordered = sorted(f"{folded}/" for folded in seen)
    for path, following in pairwise(ordered):
        if following.startswith(path):
            raise ValueError(f"the path is both a file and a folder: {seen[path[:-1]]!r}")


def _check_path(path: str) -> None:
    if len(path) <= 4000 and _PLAIN.fullmatch(path) and path.count("/") < _DEEPEST:
        return
    names = path.split("/")
    try:
        too_long = len(path.encode()) > 4000 or any(len(name.encode()) > 255 for name in names)
    except UnicodeEncodeError:
        raise ValueError(f"the path is not UTF-8: {path!r}") from None
    if too_long:
        raise ValueError(f"the path or a name in it is too long: {path!r:.100}")
    if len(names) > _DEEPEST:
        raise ValueError(f"the path has more than {_DEEPEST} parts: {path!r:.100}")
    if _BAD_IN_PATH.search(path) or _DRIVE.match(path) or any(name in ("", ".", "..") for name in names):
        raise ValueError(f"the path would leave the model's directory or is not plain: {path!r:.200}")


def _fold(path: str) -> str:
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _media_type(path: str) -> str:
    """The ModelPack media type for a file, from its name alone, so that it is the same everywhere."""
    name = path.rpartition("/")[2].lower()
    extension = name.rpartition(".")[2] if "." in name else ""
    kind = "weight.config"
    if extension in _WEIGHTS:
        kind = "weight"
    elif extension in _DOCS or name.startswith(_DOC_NAMES):
        kind = "doc"
    elif extension in _CODE:
        kind = "code"
    return f"application/vnd.cncf.model.{kind}.v1.raw"
