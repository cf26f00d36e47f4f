"""Models in the other forms that registries hold: ModelPack, ORAS, Docker's `ai/`, KitOps, and indexes of them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support import Modelstore, Result, blob, digests, key_of, staged, visible
from tests.support.registry import DOCKER_LIST, OCI_INDEX, OCI_MANIFEST, Blob, Image, Registry, config, image, index

CNCF = "application/vnd.cncf.model."
DOCKER_AI = "application/vnd.docker.ai."
KITOPS = "application/vnd.kitops.modelkit."
EMPTY = Blob(b"{}", "application/vnd.oci.empty.v1+json")
NAME = "org/model"


def tar() -> bytes:
    """An archive with a name in it that must never be used."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../../escaped"), io.BytesIO(b""))
    return buffer.getvalue()


def modelpack(*layers: Blob, media_type: str = OCI_MANIFEST, **extra: Any) -> Image:
    pushed = config({"descriptor": {}, "modelfs": {"type": "layers", "diffIds": []}}, f"{CNCF}config.v1+json")
    return image(pushed, *layers, media_type=media_type, artifactType=f"{CNCF}manifest.v1+json", **extra)


def assert_pulled(root: Path, url: str, result: Result, pushed: Image, files: dict[str, str]) -> None:
    """`result` (of `--json`) is `pushed` with exactly `files` (path to SHA-256)."""
    found = result.json
    assert (found["manifest"], found["key"]) == (pushed.digest, key_of(url)[:16]), result
    assert digests(Path(found["path"])) == files
    assert blob(root, pushed.digest).read_bytes() == pushed.raw
    for layer in pushed.blobs:
        assert blob(root, layer.digest).read_bytes() == layer.data, layer.media_type
    assert staged(root) == []


def test_modelpack(cli: Modelstore, registry: Registry, store_root: Path) -> None:
    layers = [
        Blob(b"weights", f"{CNCF}weight.v1.raw").annotated(filepath="model.safetensors"),
        Blob(b"{}", f"{CNCF}weight.config.v1.raw").annotated(filepath="config.json"),
        Blob(b"pooling", f"{CNCF}weight.config.v1.raw").annotated(filepath="1_Pooling/config.json"),
        Blob(b"# Model", f"{CNCF}doc.v1.raw").annotated(filepath="README.md", title="not-this-one.md"),
        Blob(b"", f"{CNCF}code.v1.raw").annotated(filepath="empty.py"),
    ]
    pushed = registry.push(NAME, "v1", modelpack(*layers))
    url = registry.source(NAME, "v1")
    files = {layer.extra["annotations"]["org.cncf.model.filepath"]: layer.hex for layer in layers}
    assert_pulled(store_root, url, cli("fetch", url, "--json"), pushed, files)


def test_our_own_manifest_comes_back_as_it_was(cli: Modelstore, registry: Registry, tiny_model_dir: Path) -> None:
    """A directory has the manifest that a registry would have: the same files, the same digest."""
    local = cli("fetch", str(tiny_model_dir), "--json").json
    root = Path(local["path"]).parent.parent
    raw = blob(root, local["manifest"]).read_bytes()
    stored = [path for path in (root / "blobs").iterdir() if path.read_bytes() != raw]
    blobs = tuple(Blob(path.read_bytes(), "") for path in stored)
    registry.push(NAME, "v1", Image(raw, OCI_MANIFEST, blobs))
    pulled = cli("fetch", registry.source(NAME, "v1"), "--json").json
    assert (pulled["manifest"], pulled["files"]) == (local["manifest"], local["files"])
    assert pulled["bytes"]["reused"] > 0


@pytest.mark.parametrize("media_type", ["application/vnd.oci.image.layer.v1.tar", "application/octet-stream", "text/x"])
def test_oras(cli: Modelstore, registry: Registry, store_root: Path, media_type: str) -> None:
    """As `oras push` writes it: the title names the file, whatever its type."""
    layers = [
        Blob(b"GGUF...", media_type).annotated(title="model-Q4_K_M.gguf"),
        Blob(b"{}", media_type).annotated(title="sub/config.json"),
    ]
    pushed = registry.push(NAME, "v1", image(EMPTY, *layers, media_type=OCI_MANIFEST, artifactType="application/x"))
    url = registry.source(NAME, "v1")
    files = {"model-Q4_K_M.gguf": layers[0].hex, "sub/config.json": layers[1].hex}
    assert_pulled(store_root, url, cli("fetch", url, "--json"), pushed, files)


def test_docker_ai(cli: Modelstore, registry: Registry, store_root: Path) -> None:
    files = {
        "model.gguf": Blob(b"GGUF 1", f"{DOCKER_AI}gguf.v3"),
        "mmproj.gguf": Blob(b"GGUF 2", f"{DOCKER_AI}mmproj"),
        "LICENSE": Blob(b"MIT", f"{DOCKER_AI}license"),
        "template.jinja": Blob(b"{{ messages }}", f"{DOCKER_AI}chat.template.jinja"),
    }
    listed = config({"config": {"format": "gguf"}}, f"{DOCKER_AI}model.config.v0.1+json")
    pushed = registry.push("ai/smollm2", "latest", image(listed, *files.values(), media_type=OCI_MANIFEST))
    url = registry.source("ai/smollm2")
    expected = {name: layer.hex for name, layer in files.items()}
    assert_pulled(store_root, url, cli("fetch", url, "--json"), pushed, expected)


def test_docker_ai_safetensors(cli: Modelstore, registry: Registry, store_root: Path) -> None:
    layers = [Blob(f"shard {number}".encode(), f"{DOCKER_AI}safetensors") for number in (1, 2)]
    listed = config({}, f"{DOCKER_AI}model.config.v0.1+json")
    pushed = registry.push("ai/smollm2", "latest", image(listed, *layers, media_type=OCI_MANIFEST))
    url = registry.source("ai/smollm2")
    files = {"model.safetensors": layers[0].hex, "model-2.safetensors": layers[1].hex}
    assert_pulled(store_root, url, cli("fetch", url, "--json"), pushed, files)


@pytest.mark.parametrize("kind", ["model", "code", "datasets", "docs"])
@pytest.mark.parametrize("packed", ["tar", "tar+gzip"])
def test_kitops(cli: Modelstore, registry: Registry, store_root: Path, kind: str, packed: str) -> None:
    """An archive stays one: it is never unpacked."""
    layer = Blob(tar(), f"{KITOPS}{kind}.v1.{packed}")
    listed = config({"manifestVersion": "1.0.0"}, f"{KITOPS}config.v1+json")
    pushed = registry.push(NAME, "v1", image(listed, layer, media_type=OCI_MANIFEST))
    url = registry.source(NAME, "v1")
    result = cli("fetch", url, "--json")
    (name,) = digests(result.ok() and Path(result.json["path"]))
    assert name.endswith({"tar": ".tar", "tar+gzip": ".tar.gz"}[packed])
    assert_pulled(store_root, url, result, pushed, {name: layer.hex})
    assert list(store_root.parent.rglob("escaped")) == []


@pytest.mark.parametrize(
    ("packed", "name"), [("tar", "weights.tar"), ("tar+gzip", "weights.tar.gz"), ("tar+zstd", "weights.tar.zst")]
)
def test_modelpack_archives(cli: Modelstore, registry: Registry, store_root: Path, packed: str, name: str) -> None:
    layers = [
        Blob(tar(), f"{CNCF}weight.v1.{packed}").annotated(filepath="weights"),
        Blob(b"{}", f"{CNCF}weight.config.v1.raw").annotated(filepath="weights/config.json"),
    ]
    pushed = registry.push(NAME, "v1", modelpack(*layers))
    url = registry.source(NAME, "v1")
    files = {name: layers[0].hex, "weights/config.json": layers[1].hex}
    assert_pulled(store_root, url, cli("fetch", url, "--json"), pushed, files)


def test_an_image_of_something_else(cli: Modelstore, registry: Registry, store_root: Path) -> None:
    """A container image: no layer of it is a file of a model."""
    layer = Blob(tar(), "application/vnd.docker.image.rootfs.diff.tar.gzip")
    registry.push(NAME, "v1", image(config(), layer))
    result = cli("fetch", registry.source(NAME, "v1"))
    assert result.returncode in (2, 3, 7), result
    result.failed(result.returncode)
    assert not (store_root / "models").exists()


# -- indexes --------------------------------------------------------------------------------------------------------

MODEL = modelpack(Blob(b"weights", f"{CNCF}weight.v1.raw").annotated(filepath="model.safetensors"))
SECOND = modelpack(Blob(b"others", f"{CNCF}weight.v1.raw").annotated(filepath="model.safetensors"))
FILES = {"model.safetensors": MODEL.blobs[1].hex}
AMD64 = {"platform": {"architecture": "amd64", "os": "linux"}}
ATTESTATION = {
    "platform": {"architecture": "unknown", "os": "unknown"},
    "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
}


def push_index(registry: Registry, *children: tuple[Image, dict[str, Any]], media_type: str = OCI_INDEX) -> Image:
    for child, _ in children:
        registry.push(NAME, child.digest, child)
    return registry.push(NAME, "v1", index(*children, media_type=media_type))


@pytest.mark.parametrize(
    "children",
    [
        [(MODEL, {})],
        [(MODEL, AMD64)],
        [(MODEL, {}), (SECOND, AMD64)],
        [(SECOND, AMD64), (MODEL, {})],
        [(SECOND, ATTESTATION), (MODEL, {})],
        [(MODEL, AMD64), (SECOND, ATTESTATION)],
    ],
    ids=["only", "only, with a platform", "first", "last", "attestation first", "platform and attestation"],
)
def test_index(
    cli: Modelstore, registry: Registry, store_root: Path, children: list[tuple[Image, dict[str, Any]]]
) -> None:
    push_index(registry, *children)
    url = registry.source(NAME, "v1")
    assert_pulled(store_root, url, cli("fetch", url, "--json"), MODEL, FILES)


def test_docker_list(cli: Modelstore, registry: Registry, store_root: Path) -> None:
    child = image(config(), Blob(b"weights", f"{CNCF}weight.v1.raw").annotated(filepath="model.safetensors"))
    push_index(registry, (child, AMD64), media_type=DOCKER_LIST)
    url = registry.source(NAME, "v1")
    assert_pulled(store_root, url, cli("fetch", url, "--json"), child, FILES)


@pytest.mark.parametrize(
    "children",
    [
        [(MODEL, {}), (SECOND, {})],
        [(MODEL, AMD64), (SECOND, {"platform": {"architecture": "arm64", "os": "linux"}})],
    ],
    ids=["two without", "two with"],
)
def test_an_index_of_several(
    cli: Modelstore, registry: Registry, store_root: Path, children: list[tuple[Image, dict[str, Any]]]
) -> None:
    push_index(registry, *children)
    cli("fetch", registry.source(NAME, "v1")).failed(2)
    assert visible(store_root) == {}


@pytest.mark.parametrize("pin", ["child", "index"])
def test_a_pin_through_an_index(cli: Modelstore, registry: Registry, store_root: Path, pin: str) -> None:
    """The digest that `--json` gives is the one to pin; whether the index's own does is a matter of taste."""
    pushed = push_index(registry, (MODEL, {}))
    digest = (MODEL if pin == "child" else pushed).digest
    result = cli("fetch", f"{registry.source(NAME, 'v1')}#sha256={digest[7:]}")
    if pin == "child":
        assert digests(result.path) == FILES
    else:
        assert result.returncode in (0, 7), result


def test_a_child_that_moved(cli: Modelstore, registry: Registry) -> None:
    """An index is a tag like any other: what is remembered is the manifest in it."""
    push_index(registry, (MODEL, {}))
    url = registry.source(NAME, "v1")
    cli("fetch", url).ok()
    push_index(registry, (SECOND, {}), (MODEL, AMD64))
    assert cli("fetch", url, "--json").json["manifest"] == MODEL.digest
    assert cli("fetch", "--refresh", url, "--json").json["manifest"] == SECOND.digest
