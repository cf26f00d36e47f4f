"""Any manifest at all, through the source as it is: files that can be stored, or an error of ours."""

from __future__ import annotations

import contextlib
import json
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modelstore.config import Config
from modelstore.digest import Digest
from modelstore.errors import ConfigError, SourceCorrupt, SourceNotFound
from modelstore.manifest import Manifest, check_paths
from modelstore.plugins import make_source
from modelstore.source_url import SourceURL
from modelstore.sources.base import Resolved, Source
from tests.support.registry import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, OLLAMA, Image
from tests.support.tokenregistry import TokenRegistry

HEX = "89a2116c3a82d6a97f59f748d86ed4417214353fd178ee54df418fde32495fad"
FAST = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)


@pytest.fixture
def registry() -> Iterator[TokenRegistry]:
    with TokenRegistry() as found:
        yield found


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Source]:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    found = make_source("ollama", Config(()))
    yield found
    found.close()


def resolve(source: Source, registry: TokenRegistry, raw: bytes, media_type: str) -> Resolved | None:
    """What the source makes of a manifest, checked; None if it is one of the errors that it may raise."""
    registry.push_raw("library/m", raw, media_type)
    try:
        found = source.resolve(SourceURL.parse(registry.source("library/m")))
    except (SourceCorrupt, SourceNotFound, ConfigError) as error:  # no other
        sentence = str(error)
    else:
        return checked(found)
    assert "\n" not in sentence
    assert len(sentence) < 2000
    return None


def checked(found: Resolved) -> Resolved:
    check_paths(file.path for file in found.files)
    assert found.files
    for file in found.files:
        path = PurePosixPath(file.path)
        assert not path.is_absolute()
        assert ".." not in path.parts
        assert isinstance(file.digest, Digest)
        assert type(file.size) is int
        assert file.size >= 0
    return found


TYPES = st.sampled_from([DOCKER_MANIFEST, OCI_MANIFEST, OCI_INDEX, DOCKER_LIST, "text/plain", "application/json"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=12), inner, max_size=4)),
    max_leaves=12,
)
DIGESTS = st.one_of(
    st.just(f"sha256:{HEX}"),
    st.sampled_from(
        [f"sha256-{HEX}", f"sha256:{HEX.upper()}", "sha256:../../x", f"sha256:{HEX}/..", f"sha256:{HEX}\n"]
    ),
    st.integers(0, 9).map(lambda number: f"sha256:{str(number) * 64}"),
    VALUES,
)
KINDS = [
    "model",
    "projector",
    "adapter",
    "draft",
    "template",
    "system",
    "params",
    "messages",
    "license",
    "tensor",
    "json",
]
MEDIA_TYPES = st.one_of(
    st.sampled_from([OLLAMA + kind for kind in KINDS]),
    st.sampled_from(["application/vnd.docker.ai.gguf.v3", "application/vnd.cncf.model.weight.v1.tar+gzip",
                     "application/vnd.kitops.modelkit.model.v1.tar+gzip", "application/vnd.cncf.model.weight.v1.raw"]),
    VALUES,
)  # fmt: skip
PARTS = st.sampled_from(["..", ".", "a", "B", "", "/", "\\", "\0", "C:", "\u00e9", "e\u0301", ".tar"])
NAMES = st.one_of(st.lists(PARTS, max_size=5).map("/".join), st.text(max_size=300), VALUES)
ANNOTATIONS = st.one_of(
    st.dictionaries(
        st.sampled_from(["org.cncf.model.filepath", "org.opencontainers.image.title", "other"]), NAMES, max_size=3
    ),
    VALUES,
)
SIZES = st.one_of(st.integers(0, 2**80), st.sampled_from([-1, 1.5, True, "1", None]))
DESCRIPTORS = st.one_of(
    st.fixed_dictionaries(
        {"mediaType": MEDIA_TYPES, "digest": DIGESTS, "size": SIZES},
        optional={"annotations": ANNOTATIONS, "name": NAMES, "platform": VALUES, "urls": VALUES, "data": VALUES},
    ),
    VALUES,
)
MANIFESTS = st.fixed_dictionaries(
    {"schemaVersion": st.sampled_from([2, 2, 2, 1, "2", None, 2.0])},
    optional={
        "mediaType": st.one_of(TYPES, VALUES),
        "config": DESCRIPTORS,
        "layers": st.one_of(st.lists(DESCRIPTORS, max_size=5), VALUES),
        "manifests": st.one_of(st.lists(DESCRIPTORS, max_size=3), VALUES),
        "annotations": VALUES,
        "artifactType": VALUES,
    },
)


def layer(**fields: Any) -> dict[str, Any]:
    return {"mediaType": f"{OLLAMA}model", "digest": f"sha256:{HEX}", "size": 68, **fields}


def manifest(*layers: Any, **fields: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": layer(), "layers": list(layers), **fields}


def test_the_strategy_means_something(source: Source, registry: TokenRegistry) -> None:
    """A healthy manifest of the same parts is resolved: what is refused is refused for what is wrong in it."""
    raw = json.dumps(manifest(layer(), layer(mediaType=f"{OLLAMA}system"))).encode()
    found = resolve(source, registry, raw, DOCKER_MANIFEST)
    assert found is not None
    assert [file.path for file in found.files] == ["model.gguf", "system"]
    assert {str(file.digest) for file in found.files} == {f"sha256:{HEX}"}


@FAST
@given(st.binary(max_size=300), TYPES)
def test_bytes(source: Source, registry: TokenRegistry, raw: bytes, media_type: str) -> None:
    assert resolve(source, registry, raw, media_type) is None


@FAST
@given(VALUES, TYPES)
def test_json(source: Source, registry: TokenRegistry, value: Any, media_type: str) -> None:
    assert resolve(source, registry, json.dumps(value).encode(), media_type) is None


@FAST
@given(MANIFESTS, TYPES)
@example(manifest(layer(mediaType=f"{OLLAMA}tensor", name="../x")), DOCKER_MANIFEST)
@example(manifest(layer(annotations={"org.cncf.model.filepath": "a"}), layer(name="A/b")), DOCKER_MANIFEST)
@example(manifest(layer(), layer(annotations={"org.cncf.model.filepath": "model.gguf"})), DOCKER_MANIFEST)
@example(manifest(layer(annotations={"org.cncf.model.filepath": "model-2.gguf"}), layer(), layer()), DOCKER_MANIFEST)
@example(manifest(layer(), layer(size=69)), DOCKER_MANIFEST)
@example(manifest(layer(), manifests=[layer()]), OCI_INDEX)
def test_manifests(source: Source, registry: TokenRegistry, value: Any, media_type: str) -> None:
    resolve(source, registry, json.dumps(value).encode(), media_type)


@FAST
@given(st.lists(st.tuples(MEDIA_TYPES, ANNOTATIONS, NAMES), min_size=1, max_size=6))
def test_files_of_well_formed_layers(source: Source, registry: TokenRegistry, layers: list[Any]) -> None:
    """The digests and sizes are right, so that the names are what decides."""
    listed = [layer(mediaType=kind, annotations=notes, name=name) for kind, notes, name in layers]
    resolve(source, registry, json.dumps(manifest(*listed)).encode(), DOCKER_MANIFEST)


@given(st.one_of(st.binary(max_size=300), st.one_of(VALUES, MANIFESTS).map(lambda value: json.dumps(value).encode())))
@settings(max_examples=300)
def test_the_parser_of_stored_manifests(raw: bytes) -> None:
    """What a store may find in its own blobs."""
    try:
        found = Manifest.parse(raw)
    except ValueError:
        return
    check_paths(found.files)
    assert found.raw == raw


def test_a_registry_image(registry: TokenRegistry, source: Source) -> None:
    """An index with one entry is followed, and what is pinned is the entry."""
    child = Image(json.dumps(manifest(layer())).encode(), DOCKER_MANIFEST)
    registry.push("library/m", "x", child)
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child.descriptor]}).encode()
    found = resolve(source, registry, raw, OCI_INDEX)
    assert found is not None
    assert [file.path for file in found.files] == ["model.gguf"]


# -- bounded: a manifest of 4 MiB is the most that anybody can send --------------------------------------------------

MOST = 4 << 20


def test_many_layers_of_one_name() -> None:
    """As many as fit: numbering them does not take the square of it."""
    some = {"mediaType": "application/vnd.docker.ai.license", "digest": f"sha256:{'e' * 64}", "size": 1}
    raw = json.dumps(manifest(*[some] * 28_000), separators=(",", ":")).encode()
    assert len(raw) < MOST
    begun = time.process_time()
    found = Manifest.parse(raw)
    assert time.process_time() - begun < 10
    assert len(found.files) == 28_000
    assert {"LICENSE", "LICENSE-2", "LICENSE-28000"} <= found.files.keys()


def test_many_deep_paths() -> None:
    """A check that keeps every folder of every path would want 1 GiB for this, and 4 GiB for the worst."""
    deep = "a/" * 1990 + "b"
    paths = [f"{number}/{deep}" for number in range(250)]
    listed = [layer(annotations={"org.cncf.model.filepath": path}) for path in paths]
    raw = json.dumps(manifest(*listed), separators=(",", ":")).encode()
    tracemalloc.start()
    try:
        with contextlib.suppress(ValueError):  # too deep is a good answer
            Manifest.parse(raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20
