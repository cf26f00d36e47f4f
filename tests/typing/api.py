"""The public API as its users write it. Checked by `mypy --strict`, never run."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Event
from typing import assert_type

import modelstore
from modelstore import (
    ConfigError,
    Digest,
    LayoutError,
    Model,
    ModelStoreError,
    NoSpace,
    NotCached,
    SourceError,
    SourceNotFound,
    SourceUnavailable,
    Store,
    StoreError,
    cache_key,
    errors,
    fetch,
)
from modelstore.config import Config, TierConfig
from modelstore.digest import ChunkSums
from modelstore.layouts.base import Layout
from modelstore.manifest import Descriptor, Manifest, Ref
from modelstore.model import Damage, Entry, ModelFile, VerifyReport
from modelstore.progress import Progress, ProgressUpdate
from modelstore.source_url import CacheKey, SourceURL
from modelstore.sources.base import Resolved, Source, SourceFile
from modelstore.tiers.base import BlobInfo, BlobReader, Ingest, SupportsLayouts, SupportsLocalPath, Tier

# -- using it ----------------------------------------------------------------------------------------------------------


def show(update: ProgressUpdate) -> None:
    assert_type(update.bytes_done, int)
    assert_type(update.done, bool)


def use_a_store(anywhere: os.PathLike[str]) -> Model:
    Store()
    Store(config="modelstore.toml")
    store = Store(tiers=["/mnt/nvme/modelstore", Path("/var/lib/llm-models"), TierConfig("/slow", "pvc", "ro")])
    model = store.fetch(
        "https://example.com/model.gguf",
        to=anywhere,
        layout="vllm",
        verify="full",
        refresh=True,
        offline=None,
        connections=4,
        progress=show,
        cancel=Event(),
    )
    assert_type(model, Model)
    assert_type(model.key, CacheKey)
    assert_type(model.key.short, str)
    assert_type(model.source, str)
    assert_type(model.manifest.digest, Digest)
    assert_type(model.manifest.layers, tuple[Descriptor, ...])
    assert_type(model.path, Path)
    assert_type(model.layout, str)
    assert_type(model.bytes, Mapping[str, int])
    assert_type(model.seconds, float)
    assert_type(model.files["config.json"], ModelFile)
    assert_type(model.files["config.json"].path, Path)
    assert_type(model.files["config.json"].digest, Digest)
    assert_type(model.materialize("files", to="/x"), Path)
    assert_type(model.materialize("files", to=Path("/x")), Path)
    assert_type(store.path("./model"), Path)
    assert_type(store.list(), tuple[Entry, ...])
    assert_type(store.show("abc28e40217b6b6f").manifest, Manifest | None)
    assert_type(store.verify(anywhere, "https://example.com/m", repair=True), VerifyReport)
    assert_type(store.verify().remaining, list[Damage])
    assert_type(store.remove("https://example.com/m"), tuple[Entry, ...])
    store.fetch("https://example.com/m", verify="quick")  # type: ignore[arg-type]
    store.fetch(b"https://example.com/m")  # type: ignore[arg-type]
    store.fetch("https://example.com/m", "/target")  # type: ignore[call-arg]
    return model


def use_the_functions(anywhere: os.PathLike[str]) -> None:
    assert_type(fetch("https://example.com/m"), Model)
    assert_type(fetch(anywhere, layout="vllm", offline=True), Model)
    assert_type(cache_key("https://example.com/m"), CacheKey)
    assert_type(cache_key(anywhere), CacheKey)
    assert_type(SourceURL.parse(anywhere).pin, Digest | None)
    digest = Digest.parse("sha256:" + "0" * 64)
    assert_type(digest, Digest)
    assert_type(digest.hex, str)
    assert_type(Digest.of(b"") < digest, bool)
    digest.hex = ""  # type: ignore[misc]
    assert_type(modelstore.__version__, str)


def use_the_errors() -> int:
    try:
        fetch("https://example.com/m")
    except (ConfigError, NotCached, LayoutError) as error:
        assert_type(error.exit_code, int)
    except SourceUnavailable as error:
        assert_type(error.retry_after, float | None)
    except SourceNotFound as error:
        not_found: FileNotFoundError = error
        source_error: SourceError = error
        return not_found.errno or source_error.exit_code
    except NoSpace as error:
        full: OSError = error
        store_error: StoreError = error
        return full.errno or store_error.exit_code
    except errors.ModelStoreError as error:
        assert_type(error.tier, str | None)
        assert_type(error.op, str | None)
        assert_type(error.hint, str | None)
        assert_type(error.retryable, bool)
        same: ModelStoreError = error
        return same.exit_code
    return 0


# -- extending it: what a third party writes ---------------------------------------------------------------------------


class TheirIngest:
    def write_at(self, offset: int, data: bytes | memoryview) -> None: ...

    def hash_to(self, stop: int) -> None: ...

    @property
    def digest(self) -> Digest:
        return Digest.of(b"")

    def commit(self, sums: ChunkSums, verified: Digest | None = None) -> Digest:
        return Digest.of(b"")


class TheirTier:
    name = "theirs"
    writable = True

    def __init__(self, config: TierConfig) -> None:
        self.location = config.location

    def stat(self, digest: Digest) -> BlobInfo:
        raise errors.BlobNotFound(f"{digest} is not there", tier=self.name, op="stat")

    def missing(self, digests: Collection[Digest]) -> set[Digest]:
        return set(digests)

    def open_range(self, digest: Digest, start: int, stop: int) -> Iterator[bytes]:
        yield b""

    def ingest(self, size: int, expected: Digest | None) -> AbstractContextManager[TheirIngest]:
        raise errors.NoSpace("full", tier=self.name)

    def read_sums(self, digest: Digest) -> ChunkSums | None:
        return None

    def read_ref(self, key: CacheKey) -> Ref | None:
        return None

    def write_ref(self, key: CacheKey, ref: Ref) -> None: ...

    def refs(self) -> Iterator[tuple[CacheKey, Ref]]:
        yield from ()

    def walk(self) -> Iterator[BlobInfo]:
        yield from ()


class TheirSource:
    def __init__(self, config: Config) -> None:
        self.offline = config.offline

    def resolve(self, url: SourceURL) -> Resolved:
        return Resolved((SourceFile("model.gguf", 3, validator="etag:1"),), revision="main")

    def open_range(self, file: SourceFile, start: int, stop: int) -> Iterator[bytes]:
        yield b"abc"[start:stop]

    def close(self) -> None: ...


class TheirLayout:
    def check_target(self, sizes: Mapping[str, int], blobs: SupportsLayouts, target: str) -> None: ...

    def is_complete(self, model: Manifest, blobs: SupportsLayouts, target: str) -> bool:
        return False

    def materialize(self, model: Manifest, blobs: SupportsLayouts, target: str) -> str:
        local: SupportsLocalPath = blobs
        return local.local_path(model.layers[0].digest)


ingest: Ingest = TheirIngest()
tier: Tier = TheirTier(TierConfig("their://place", "theirs"))
reader: BlobReader = tier
make_source: Callable[[Config], Source] = TheirSource
make_layout: Callable[[], Layout] = TheirLayout
callback: Progress = show
their_store = Store(tiers=[tier, "/var/lib/llm-models"])
