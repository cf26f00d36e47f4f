"""What a store gives back: :class:`Model`, and the reports of its other verbs. Values only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from modelstore.digest import Digest
from modelstore.manifest import Manifest, Ref
from modelstore.source_url import CacheKey

__all__ = ["Damage", "Entry", "Found", "Model", "ModelFile", "VerifyReport"]


@dataclass(frozen=True, slots=True)
class Found:
    """A model that some tier knows."""

    ref: Ref
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model that is laid out: where it is, its digest, its size in bytes."""

    path: Path
    digest: Digest
    size: int


@dataclass(frozen=True)
class Model:
    """A model that is complete and laid out at ``path``.

    ``source`` is the URL without secrets, ``key`` its cache key. ``bytes`` says where this call's bytes came from:
    ``origin``, ``reused`` (already there), and each slower tier by its name. ``seconds`` is how long the call took.
    """

    source: str
    key: CacheKey
    manifest: Manifest
    path: Path
    layout: str
    bytes: Mapping[str, int]
    seconds: float
    _lay_out: Callable[[str, str], Path] = field(repr=False, compare=False)

    @cached_property
    def files(self) -> Mapping[str, ModelFile]:
        """The files by their path in the tree."""
        entries = self.manifest.files.values()
        return {entry.path: ModelFile(self.path / entry.path, entry.digest, entry.size) for entry in entries}

    def materialize(self, layout: str, to: "str | Path") -> Path:
        """Lay the model out a second time, at ``to``. Raises ``LayoutError``."""
        return self._lay_out(layout, str(to))

    def to_json(self) -> dict[str, Any]:
        """The fields of ``modelstore fetch --json``."""
        return {
            "source": self.source,
            "key": self.key.short,
            "manifest": str(self.manifest.digest),
            "path": str(self.path),
            "layout": self.layout,
            "seconds": round(self.seconds, 6),
            "bytes": dict(self.bytes),
            "files": [
                {"path": entry.path, "size": entry.size, "digest": str(entry.digest)}
                for entry in self.manifest.files.values()
            ],
        }


@dataclass(frozen=True, slots=True)
class Entry:
    """A model as a store lists it. ``manifest`` is None if its bytes are gone or damaged."""

    key: CacheKey
    ref: Ref
    manifest: Manifest | None
    tier: str

    def to_json(self, *, detailed: bool = False) -> dict[str, Any]:
        """The fields of ``modelstore list --json``, and with ``detailed`` those of ``modelstore show --json``."""
        files = list(self.manifest.files.values()) if self.manifest else []
        types = {layer.path: layer.media_type for layer in self.manifest.layers} if self.manifest else {}
        value = {
            "key": self.key.short,
            "source": self.ref.source,
            "manifest": str(self.ref.manifest),
            "size": sum(file.size for file in files),
            "files": len(files),
            "fetched": self.ref.fetched,
            "tier": self.tier,
        }
        if not detailed:
            return value
        listed = [
            {"path": file.path, "size": file.size, "digest": str(file.digest), "mediaType": types[file.path]}
            for file in files
        ]
        return {**value, "files": listed, "revision": self.ref.revision, "checked": self.ref.checked}


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that does not hold the bytes it should: a blob (``what`` is its digest) or a laid-out directory.

    ``where`` is the tier, ``model`` the key of a model that needs it.
    """

    what: str
    where: str
    model: str | None = None

    @property
    def is_blob(self) -> bool:
        """Whether it is a blob, and not a directory laid out from sound ones."""
        return self.what.startswith("sha256:")


@dataclass
class VerifyReport:
    """What ``verify`` found: how many blobs and files were ``checked``, what is ``damaged``, what was ``repaired``."""

    models: dict[CacheKey, str] = field(default_factory=dict)
    checked: int = 0
    damaged: list[Damage] = field(default_factory=list)
    repaired: list[Damage] = field(default_factory=list)

    @property
    def remaining(self) -> list[Damage]:
        """What is still damaged."""
        return [damage for damage in self.damaged if damage not in self.repaired]
