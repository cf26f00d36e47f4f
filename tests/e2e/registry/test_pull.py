"""An Ollama-shaped model, pushed to a real registry and pulled by `modelstore fetch ollama://…`."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from tests.support import Modelstore, Result, blob, digests, flip_byte, key_of, sha256_of, staged, visible
from tests.support.httpserver import PatternBody
from tests.support.registry import OCI_MANIFEST, OLLAMA, Blob, Image, Registry, config, image, ollama

CHUNK = 16 << 20
ARCHITECTURE = b"general.architecture"
#: The smallest GGUF: no tensors, one key.
GGUF = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 20) + ARCHITECTURE + struct.pack("<IQ", 8, 4) + b"test"
MODEL = ollama("model", GGUF)
TEMPLATE = ollama("template", "{{ .System }} {{ .Prompt }}")
SYSTEM = ollama("system", "Say bye!")
PARAMS = ollama("params", '{"stop":["USER:","ASSISTANT:"],"temperature":1,"top_k":10}\n')
MESSAGES = ollama("messages", '[{"role":"user","content":"You run tests."}]\n')
LICENSE = ollama("license", "MIT")
TINY = image(config(), MODEL, TEMPLATE, SYSTEM, PARAMS, MESSAGES, LICENSE)
FILES = {
    "model.gguf": MODEL,
    "template": TEMPLATE,
    "system": SYSTEM,
    "params.json": PARAMS,
    "messages.json": MESSAGES,
    "LICENSE": LICENSE,
}
OTHER = image(config(), MODEL, ollama("template", "{{ .Prompt }}"))
NAME = "library/tiny"
PARTS = pytest.mark.parametrize(
    "part", [MODEL.digest, TINY.blobs[0].digest, TINY.digest], ids=["layer", "config", "manifest"]
)


def hexes(files: dict[str, Blob]) -> dict[str, str]:
    return {name: layer.hex for name, layer in files.items()}


def assert_pulled(root: Path, url: str, result: Result, pushed: Image, files: dict[str, Blob]) -> None:
    """`result` (of `--json`) is `pushed` with exactly `files`, byte for byte as it was pushed."""
    found = result.json
    assert found["manifest"] == pushed.digest, result
    assert (found["source"], found["key"]) == (url, key_of(url)[:16])
    listed = {file["path"]: (file["digest"], file["size"]) for file in found["files"]}
    assert listed == {name: (layer.digest, len(layer.data)) for name, layer in files.items()}
    assert digests(Path(found["path"])) == hexes(files)
    assert blob(root, pushed.digest).read_bytes() == pushed.raw, "the manifest's own bytes"
    for layer in pushed.blobs:
        assert blob(root, layer.digest).read_bytes() == layer.data, layer.media_type
    assert staged(root) == []


def test_vectors() -> None:
    """What is pushed here is what Ollama itself would write (its tests' digests)."""
    assert (len(GGUF), MODEL.hex) == (68, "89a2116c3a82d6a97f59f748d86ed4417214353fd178ee54df418fde32495fad")
    assert TEMPLATE.hex == "fe7ac77b725cda2ccad03f88a880ecdfd7a33192d6cae08fce2c0ee1455991ed"
    assert SYSTEM.hex == "4c5f51faac758fecaff8db42f0b7382891a4d0c0bb885f7b86be88c814a7cc86"
    assert PARAMS.hex == "1d0ad71299d48c2fb7ae2b98e683643e771f8a5b72be34942af90d97a91c1e37"


def test_an_ollama_model(cli: Modelstore, registry: Registry, store_root: Path) -> None:
    registry.push(NAME, "latest", TINY)
    url = registry.source(NAME)
    result = cli("fetch", url, "--json")
    assert_pulled(store_root, url, result, TINY, FILES)
    assert result.json["bytes"]["origin"] >= sum(len(layer.data) for layer in FILES.values())


@pytest.mark.parametrize(
    ("pushed", "asked"),
    [
        (("library/tiny", "latest"), "library/tiny"),
        (("library/tiny", "1.5b-Q4_K_M"), "library/tiny:1.5b-Q4_K_M"),
        (("org/tiny", "v1"), "org/tiny:v1"),
        (("org/team/sub/tiny", "v1"), "org/team/sub/tiny:v1"),
    ],
)
def test_names(cli: Modelstore, registry: Registry, pushed: tuple[str, str], asked: str) -> None:
    registry.push(*pushed, TINY)
    assert digests(cli("fetch", f"ollama://{registry.host}/{asked}").path) == hexes(FILES)


def test_every_kind_of_layer(cli: Modelstore, registry: Registry, store_root: Path) -> None:
    files = {
        "model.gguf": ollama("model", b"GGUF 1"),
        "model-2.gguf": ollama("model", b"GGUF 2"),
        "model-3.gguf": ollama("model", b"GGUF 3"),
        "mmproj.gguf": ollama("projector", b"GGUF p"),
        "mmproj-2.gguf": ollama("projector", b"GGUF q"),
        "adapter.gguf": ollama("adapter", b"GGUF a"),
        "draft.gguf": ollama("draft", b"GGUF d"),
        "LICENSE": ollama("license", "MIT"),
        "LICENSE-2": ollama("license", "Apache-2.0"),
        "system": ollama("system", b""),
    }
    unknown = Blob(b"who knows", OLLAMA + "embed-of-tomorrow")
    pushed = registry.push(NAME, "latest", image(config(), *files.values(), unknown))
    url = registry.source(NAME)
    assert_pulled(store_root, url, cli("fetch", url, "--json"), pushed, files)


def test_tensor_models_have_names_of_their_own(cli: Modelstore, registry: Registry, store_root: Path) -> None:
    files = {
        "config.json": Blob(b"{}", OLLAMA + "json", {"name": "config.json"}),
        "vision/config.json": Blob(b"{ }", OLLAMA + "json", {"name": "vision/config.json"}),
        "model.layers.0.weight": Blob(b"tensor", OLLAMA + "tensor", {"name": "model.layers.0.weight"}),
    }
    pushed = registry.push(NAME, "latest", image(config({"model_format": "safetensors"}), *files.values()))
    url = registry.source(NAME)
    assert_pulled(store_root, url, cli("fetch", url, "--json"), pushed, files)


def test_the_same_bytes_twice(cli: Modelstore, registry: Registry, store_root: Path) -> None:
    """One blob, two files; and a config that is also a layer."""
    both = config({})
    files = {"template": ollama("template", "same"), "system": ollama("system", "same"), "params.json": both}
    listed = [files["template"], files["system"], Blob(both.data, OLLAMA + "params")]
    pushed = registry.push(NAME, "latest", image(both, *listed))
    url = registry.source(NAME)
    assert_pulled(store_root, url, cli("fetch", url, "--json"), pushed, files)


@pytest.mark.parametrize("size", [CHUNK, 2 * CHUNK + 12345])
def test_large_blobs(cli: Modelstore, registry: Registry, store_root: Path, size: int) -> None:
    large = ollama("model", b"".join(PatternBody(size).read(0, size)))
    pushed = registry.push(NAME, "latest", image(config(), large, TEMPLATE))
    url = registry.source(NAME)
    assert_pulled(store_root, url, cli("fetch", url, "--json"), pushed, {"model.gguf": large, "template": TEMPLATE})
    if size > CHUNK:
        ranges = [line for line in registry.requests if line["http.response.status"] == 206]
        assert len(ranges) >= 2, "in ranges"


def test_a_manifest_without_a_config_or_media_type(cli: Modelstore, registry: Registry, store_root: Path) -> None:
    """The OCI form, whose media type is only in the header."""
    plain = json.loads(image(config({}), MODEL, media_type=OCI_MANIFEST).raw)
    del plain["mediaType"]
    pushed = Image(json.dumps(plain).encode(), OCI_MANIFEST, (config({}), MODEL))
    registry.push(NAME, "latest", pushed)
    url = registry.source(NAME)
    assert_pulled(store_root, url, cli("fetch", url, "--json"), pushed, {"model.gguf": MODEL})


# -- pins, refs and tags --------------------------------------------------------------------------------------------


def test_pinned_by_the_manifest_digest(cli: Modelstore, registry: Registry, store_root: Path) -> None:
    registry.push(NAME, "latest", TINY)
    url = registry.source(NAME)
    assert_pulled(store_root, url, cli("fetch", f"{url}#sha256={TINY.digest[7:]}", "--json"), TINY, FILES)


@pytest.mark.parametrize("pin", [OTHER.digest[7:], MODEL.hex, "0" * 64], ids=["another", "its layer", "nothing"])
def test_a_wrong_pin(cli: Modelstore, registry: Registry, store_root: Path, pin: str) -> None:
    """Also for a model of one layer: the pin of `ollama://` is the manifest's digest, whatever is in it."""
    registry.push(NAME, "latest", image(config(), MODEL))
    cli("fetch", f"{registry.source(NAME)}#sha256={pin}").failed(7)
    assert not any(name.startswith((".modelstore/refs", "models")) for name in visible(store_root))
    assert cli("path", registry.source(NAME)).returncode == 11


def test_a_pin_on_what_is_cached(cli: Modelstore, registry: Registry) -> None:
    registry.push(NAME, "latest", image(config(), MODEL))
    url = registry.source(NAME)
    cli("fetch", url).ok()
    cli("fetch", f"{url}#sha256={TINY.digest[7:]}").failed(7)


@pytest.mark.parametrize("asked", ["library/no-such-model:latest", "library/tiny:no-such-tag"])
def test_what_is_not_there(cli: Modelstore, registry: Registry, store_root: Path, asked: str) -> None:
    registry.push(NAME, "latest", TINY)
    cli("fetch", f"ollama://{registry.host}/{asked}").failed(3)
    assert visible(store_root) == {}


def test_nobody_listens(cli: Modelstore) -> None:
    cli("fetch", "ollama://127.0.0.1:1/library/tiny").failed(5)


def test_offline(cli: Modelstore, registry: Registry) -> None:
    registry.push(NAME, "latest", TINY)
    cli("fetch", "--offline", registry.source(NAME)).failed(11)
    assert registry.requests == []


@pytest.mark.parametrize(
    "asked", ["library/..:t", "../../x", "library/tiny@sha256:00", "a b/c", "library/tiny:", "-x/y", "n/m?tag=x"]
)
def test_what_is_no_name(cli: Modelstore, registry: Registry, store_root: Path, asked: str) -> None:
    cli("fetch", f"ollama://{registry.host}/{asked}").failed(2)
    assert registry.requests == []
    assert visible(store_root) == {}


@pytest.mark.parametrize("host", ["127.0.0.1:99999", "127.0.0.1:x", "127.0.0.1:1:2", "127.0.0.1:-1"])
def test_what_is_no_port(cli: Modelstore, host: str) -> None:
    """Ollama's grammar would have `host:https`; nobody can connect there."""
    cli("fetch", f"ollama://{host}/library/tiny").failed(2)


def test_the_tag_moves(cli: Modelstore, registry: Registry, store_root: Path) -> None:
    """What is cached stays, until --refresh; then it is the new one as a whole."""
    url = registry.source(NAME)
    registry.push(NAME, "latest", TINY)
    cli("fetch", url).ok()
    registry.push(NAME, "latest", OTHER)
    assert cli("fetch", url, "--json").json["manifest"] == TINY.digest
    files = {"model.gguf": MODEL, "template": OTHER.blobs[2]}
    refreshed = cli("fetch", "--refresh", url, "--json")
    assert_pulled(store_root, url, refreshed, OTHER, files)
    assert refreshed.json["bytes"]["origin"] < 2 * sum(len(part.data) for part in OTHER.blobs[1:])
    assert cli("fetch", url, "--json").json["manifest"] == OTHER.digest


def test_a_remembered_model_that_is_another_now(cli: Modelstore, registry: Registry, store_root: Path) -> None:
    """A blob was lost, and the registry has another model by that name: an error, until --refresh."""
    url = registry.source(NAME)
    registry.push(NAME, "latest", TINY)
    cli("fetch", url).ok()
    registry.push(NAME, "latest", OTHER)
    blob(store_root, TEMPLATE.digest).unlink()
    cli("fetch", url, "--to", store_root.parent / "serve").failed(6, "--refresh")
    refreshed = cli("fetch", "--refresh", url, "--json")
    assert refreshed.json["manifest"] == OTHER.digest


@PARTS
def test_what_was_lost_is_brought_again(cli: Modelstore, registry: Registry, store_root: Path, part: str) -> None:
    url = registry.source(NAME)
    registry.push(NAME, "latest", TINY)
    tree = cli("fetch", url).path
    blob(store_root, part).unlink()
    shutil.rmtree(tree)  # a tree that is whole needs no blobs
    assert_pulled(store_root, url, cli("fetch", url, "--json"), TINY, FILES)


# -- what else is done with a model ---------------------------------------------------------------------------------


def test_the_other_commands(cli: Modelstore, registry: Registry, tmp_path: Path) -> None:
    registry.push(NAME, "latest", TINY)
    url = registry.source(NAME)
    target = tmp_path / "serve" / "tiny"
    assert cli("fetch", url, "--to", target).path == target
    assert digests(target) == hexes(FILES)
    cli("path", url).ok()
    assert TINY.digest in cli("show", url, "--json").ok().stdout
    assert url in cli("list").ok().stdout
    cli("verify", url).ok()
    cli("remove", url).ok()
    assert cli("path", url).returncode == 11


@PARTS
def test_bit_rot_is_found_and_mended(cli: Modelstore, registry: Registry, store_root: Path, part: str) -> None:
    registry.push(NAME, "latest", TINY)
    url = registry.source(NAME)
    cli("fetch", url).ok()
    flip_byte(blob(store_root, part), 3)
    assert cli("verify", url).returncode == 7
    cli("verify", "--repair", url).ok()
    assert_pulled(store_root, url, cli("fetch", url, "--json"), TINY, FILES)


def test_two_models_share_what_is_the_same(cli: Modelstore, registry: Registry) -> None:
    large = ollama("model", b"".join(PatternBody(CHUNK).read(0, CHUNK)))
    for name in ("a", "b"):
        registry.push(f"library/{name}", "latest", image(config(), large, ollama("system", name)))
    cli("fetch", registry.source("library/a")).ok()
    second = cli("fetch", registry.source("library/b"), "--json").json
    assert second["bytes"]["origin"] < 10_000
    assert second["bytes"]["reused"] >= CHUNK
    assert sha256_of(Path(second["path"]) / "model.gguf") == large.hex


def test_from_another_tier(
    cli: Modelstore, run_modelstore: Modelstore, registry: Registry, store_root: Path, tmp_path: Path
) -> None:
    """A slower tier has it: the manifest's bytes come from there unchanged too, and nothing from the registry."""
    registry.push(NAME, "latest", TINY)
    url = registry.source(NAME)
    cli("fetch", url).ok()
    fast = tmp_path / "fast"
    result = run_modelstore.at(fast, store_root)("fetch", "--offline", url, "--json")
    assert_pulled(fast, url, result, TINY, FILES)
