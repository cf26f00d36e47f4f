"""Manifests of a registry that means harm: an error, and nothing outside the store and the target."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelstore import Store
from modelstore.errors import ModelStoreError
from tests.support import Modelstore, tree, visible
from tests.support.httpserver import BytesBody
from tests.support.registry import OCI_INDEX, OCI_MANIFEST, Blob, Image, config, image, ollama
from tests.support.tokenregistry import TokenRegistry

NAME = "library/tiny"
MODEL = ollama("model", b"GGUF tiny")
TINY = image(config(), MODEL)
HEX = MODEL.hex
Fetch = Callable[[bytes], None]


@pytest.fixture
def refused(
    stand_in: TokenRegistry, store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """`refused(image, *codes)`: it cannot be fetched, and leaves all as it was. In this process: there are many."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))

    def elsewhere() -> dict[str, str]:
        return {name: what for name, what in tree(tmp_path).items() if not name.startswith(("store", "serve"))}

    def check(pushed: Image, *codes: int) -> None:
        stand_in.push(NAME, "latest", pushed)
        before, target = elsewhere(), tmp_path / "serve" / "model"
        with pytest.raises(ModelStoreError) as caught:
            Store([store_root]).fetch(stand_in.source(NAME), to=target)
        assert caught.value.exit_code in (codes or (7,)), caught.value
        assert len(str(caught.value).splitlines()) == 1
        assert elsewhere() == before
        assert not target.exists()
        assert not any(name.startswith((".modelstore/refs", "models", "manifests")) for name in visible(store_root))
        blobs = {name for name in visible(store_root) if name.startswith("blobs/")}
        assert all(len(name) == len("blobs/sha256-") + 64 for name in blobs)

    return check


def with_layer(**changes: Any) -> Image:
    """TINY, with something else in its layer; ... takes a field away."""
    value = json.loads(TINY.raw)
    layer = {**value["layers"][0], **changes}
    value["layers"][0] = {name: field for name, field in layer.items() if field is not ...}
    return Image(json.dumps(value).encode(), TINY.media_type, TINY.blobs)


DIGESTS = [
    "sha256:../../../../escaped",
    f"sha256:../{HEX}",
    f"sha256:{HEX}/../../escaped",
    f"sha256:{HEX}/",
    f"/sha256:{HEX}",
    f"sha256-{HEX}",
    f"sha256:{HEX.upper()}",
    f"SHA256:{HEX}",
    f" sha256:{HEX}",
    f"sha256:{HEX}\n",
    f"sha256:{HEX}?x=y",
    f"sha256:{HEX[:-1]}",
    f"sha256:{HEX}0",
    f"sha256:{HEX[:-1]}g",
    f"sha256:{HEX[:-1]}\u0661",
    HEX,
    "sha256:",
    "",
    "sha512:" + "0" * 128,
    "md5:" + "0" * 32,
    7,
    None,
    [],
    {"sha256": HEX},
    ...,
]


@pytest.mark.parametrize("digest", DIGESTS, ids=lambda digest: ascii(digest)[:50])
def test_digests(refused: Callable[..., None], stand_in: TokenRegistry, digest: Any) -> None:
    """CVE-2024-37032: a digest is a digest before it is part of a path or of an address."""
    refused(with_layer(digest=digest))
    assert stand_in.of("/blobs/") == []


@pytest.mark.parametrize("digest", ["sha256:../../../../escaped", f"sha256-{HEX}", 7, None], ids=repr)
def test_digests_of_configs(refused: Callable[..., None], stand_in: TokenRegistry, digest: Any) -> None:
    value = json.loads(TINY.raw)
    value["config"]["digest"] = digest
    refused(Image(json.dumps(value).encode(), TINY.media_type, TINY.blobs))
    assert stand_in.of("/blobs/") == []


@pytest.mark.parametrize("digest", ["sha256:../../../../escaped", f"sha256-{TINY.digest[7:]}", 7, None], ids=repr)
def test_digests_in_an_index(refused: Callable[..., None], stand_in: TokenRegistry, digest: Any) -> None:
    child = {"mediaType": TINY.media_type, "digest": digest, "size": len(TINY.raw)}
    value = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]}
    refused(Image(json.dumps(value).encode(), OCI_INDEX))
    assert len(stand_in.of("/manifests/")) == 1


def test_a_child_that_is_another_manifest(refused: Callable[..., None], stand_in: TokenRegistry) -> None:
    """The registry answers an index's child with other bytes than its digest says."""
    digest = "sha256:" + "a" * 64
    stand_in.manifests[NAME, digest] = TINY
    stand_in.blobs[MODEL.digest] = stand_in.blobs[TINY.blobs[0].digest] = BytesBody(b"")
    stand_in.manifest_headers = {"Docker-Content-Digest": None}
    child = {"mediaType": TINY.media_type, "digest": digest, "size": len(TINY.raw)}
    value = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]}
    refused(Image(json.dumps(value).encode(), OCI_INDEX))
    assert stand_in.of("/blobs/") == []


def codes(path: Any) -> tuple[int, ...]:
    """Exit codes; an empty path may also be none at all, and then there is no file."""
    return (2, 3, 7) if path == "" else (7,)


PATHS = [
    "../escaped",
    "../../../../../../escaped",
    "a/../../escaped",
    "/escaped",
    "//escaped",
    "..\\escaped",
    "a\\b",
    "C:\\escaped",
    "C:escaped",
    "..",
    ".",
    "",
    "a/",
    "a//b",
    "./a",
    "a/./b",
    "a\0b",
    "a\nb",
    "\x1b[31mred",
    "a" * 256,
    "/".join(["a"] * 3000),
    "\ud800",
    7,
    [],
    {"path": "a"},
]


@pytest.mark.parametrize("annotation", ["org.cncf.model.filepath", "org.opencontainers.image.title"])
@pytest.mark.parametrize("path", PATHS, ids=lambda path: ascii(path)[:40])
def test_paths_in_annotations(
    refused: Callable[..., None], stand_in: TokenRegistry, annotation: str, path: Any
) -> None:
    layer = Blob(b"weights", "application/vnd.cncf.model.weight.v1.raw", {"annotations": {annotation: path}})
    refused(image(config({}), layer, media_type=OCI_MANIFEST), *codes(path))
    assert stand_in.of("/blobs/") == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ascii(path)[:40])
def test_paths_in_tensor_names(refused: Callable[..., None], path: Any) -> None:
    refused(
        with_layer(mediaType="application/vnd.ollama.image.tensor", name=path), *((2, 3, 7) if path == "" else (7,))
    )


@pytest.mark.parametrize(
    "paths", [("a", "a"), ("a", "A"), ("a", "a/b"), ("A/c", "a"), ("\u00e9", "e\u0301")], ids=lambda paths: ascii(paths)
)
def test_paths_that_cannot_stand_together(refused: Callable[..., None], paths: tuple[str, str]) -> None:
    kind = "application/vnd.cncf.model.weight.v1.raw"
    layers = [Blob(name.encode(), kind).annotated(filepath=name) for name in paths]
    refused(image(config({}), *layers, media_type=OCI_MANIFEST))


@pytest.mark.parametrize(
    "changes",
    [{"size": -1}, {"size": "9"}, {"size": 9.0}, {"size": True}, {"size": None}, {"size": ...}, {"size": 1e999},
     {"mediaType": 7}, {"mediaType": ...}, {"annotations": 7}, {"annotations": "x"}],
    ids=str,
)  # fmt: skip
def test_descriptors(refused: Callable[..., None], changes: dict[str, Any]) -> None:
    refused(with_layer(**changes))


GARBAGE: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"<html>Sign in</html>",
    "cut": TINY.raw[:-20],
    "more": TINY.raw + b"{}",
    "an array": b"[]",
    "null": b"null",
    "a number": b"7",
    "an empty object": b"{}",
    "no layers": b'{"schemaVersion":2,"layers":[],"config":{}}',
    "layers of numbers": b'{"schemaVersion":2,"layers":[7],"config":{}}',
    "layers by name": b'{"schemaVersion":2,"layers":{"a":{}},"config":{}}',
    "schema version 1": b'{"schemaVersion":1,"name":"x","fsLayers":[{"blobSum":"sha256:00"}]}',
    "deep": b"[" * 200_000,
    "deep and whole": b'{"schemaVersion":2,"layers":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "not UTF-8": b'{"schemaVersion":2,"x":"\xff\xfe"}',
    "an index of nothing": b'{"schemaVersion":2,"manifests":[]}',
    "an index of numbers": b'{"schemaVersion":2,"manifests":[1,2]}',
    "a number that is too long": b'{"schemaVersion":2,"layers":[{"size":' + b"9" * 10_000 + b"}]}",
}


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, OCI_INDEX, "text/plain"])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage(refused: Callable[..., None], garbage: str, media_type: str) -> None:
    refused(Image(GARBAGE[garbage], media_type), 2, 5, 7)


@pytest.mark.parametrize("size", [(4 << 20) + 1, 64 << 20])
def test_a_huge_manifest(refused: Callable[..., None], stand_in: TokenRegistry, size: int) -> None:
    """Not even read to its end."""
    raw = TINY.raw.rstrip() + b" " * (size - len(TINY.raw.rstrip()))
    refused(Image(raw, TINY.media_type, TINY.blobs), 5, 7)
    (request,) = stand_in.of("/manifests/")
    assert request.body_bytes <= 16 << 20


def test_a_manifest_of_four_mebibytes(cli: Modelstore, stand_in: TokenRegistry) -> None:
    """The largest that registries take."""
    pushed = Image(TINY.raw.rstrip() + b" " * ((4 << 20) - len(TINY.raw.rstrip())), TINY.media_type, TINY.blobs)
    stand_in.push(NAME, "latest", pushed)
    assert cli("fetch", stand_in.source(NAME), "--json").json["manifest"] == pushed.digest


def test_an_index_of_indexes(refused: Callable[..., None], stand_in: TokenRegistry) -> None:
    """Bounded: nobody follows a chain of them."""
    pushed = TINY
    for _ in range(20):
        entry = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [pushed.descriptor]}).encode()
        pushed = Image(entry, OCI_INDEX)
        stand_in.manifests[NAME, pushed.digest] = pushed
    refused(pushed, 2, 7)
    assert len(stand_in.of("/manifests/")) <= 8


def test_many_layers(cli: Modelstore, stand_in: TokenRegistry) -> None:
    """Bounded by the manifest's size alone: ten thousand layers of one blob are ten thousand small files."""
    layer = Blob(b"x", "application/vnd.cncf.model.weight.v1.raw")
    layers = [layer.annotated(filepath=f"{number}") for number in range(10_000)]
    stand_in.push(NAME, "latest", image(config({}), *layers, media_type=OCI_MANIFEST))
    found = cli("fetch", stand_in.source(NAME), "--json").json
    assert len(found["files"]) == 10_000
    assert len(stand_in.of("/blobs/")) <= 2
