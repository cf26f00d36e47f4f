"""Finds sources by URL scheme, tiers by the scheme of their location, layouts by name.

All of them are entry points, ours and other packages' alike (groups ``modelstore.sources``, ``modelstore.tiers``,
``modelstore.layouts``). Ours are also listed here: reading the entry points of an environment takes longer than a
warm hit.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from modelstore.config import Config, TierConfig
from modelstore.errors import ConfigError

if TYPE_CHECKING:
    from modelstore.layouts.base import Layout
    from modelstore.sources.base import Source
    from modelstore.tiers.base import Tier

__all__ = ["BUILT_IN", "make_layout", "make_source", "make_tier"]

BUILT_IN: Final = {
    "modelstore.sources": {
        "file": "modelstore.sources.filesystem:FileSource",
        "hf": "modelstore.sources.huggingface:HuggingFaceSource",
        "http": "modelstore.sources.web:WebSource",
        "https": "modelstore.sources.web:WebSource",
        "ollama": "modelstore.sources.ollama:OllamaSource",
        "s3": "modelstore.sources.s3:S3Source",
    },
    "modelstore.tiers": {
        "file": "modelstore.tiers.directory:DirectoryTier",
        "memory": "modelstore.tiers.memory:MemoryTier",
    },
    "modelstore.layouts": {
        "files": "modelstore.layouts.files:FilesLayout",
        "vllm": "modelstore.layouts.vllm:VllmLayout",
    },
}


def make_source(scheme: str, config: Config) -> "Source":
    """The source for a URL scheme; those that nobody has registered may be fsspec's.

    Raises :class:`ConfigError` that lists the known ones.
    """
    try:
        source: Source = _load("modelstore.sources", scheme, "URL scheme")(config)
    except ConfigError:
        from modelstore.sources.fsspec import FsspecSource, is_known

        if not is_known(scheme):
            raise
        source = FsspecSource(config)
    return source


def make_tier(config: TierConfig) -> "Tier":
    """The tier at a location. Raises :class:`ConfigError` for a scheme that nobody handles."""
    scheme, separator, _ = config.location.partition("://")
    tier: Tier = _load("modelstore.tiers", scheme if separator else "file", "tier scheme")(config)
    return tier


def make_layout(name: str) -> "Layout":
    """The layout of a name. Raises :class:`ConfigError` that lists the known ones."""
    layout: Layout = _load("modelstore.layouts", name, "layout")()
    return layout


def _load(group: str, name: str, what: str) -> Any:
    if target := BUILT_IN[group].get(name):
        module, _, attribute = target.partition(":")
        return getattr(import_module(module), attribute)
    from importlib.metadata import entry_points

    found = entry_points(group=group)
    for entry in found.select(name=name):
        return entry.load()
    known = ", ".join(sorted({*BUILT_IN[group], *found.names}))
    raise ConfigError(f"unknown {what} {name!r}", hint=f"known are {known}")
