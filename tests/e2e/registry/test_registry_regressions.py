"""What a review of the registries' client found, from the outside: each of these was wrong once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import Modelstore, blob, digests, sha256_of, visible
from tests.support.httpserver import BytesBody
from tests.support.registry import OCI_MANIFEST, Blob, config, image, ollama
from tests.support.tokenregistry import Answer, Request, TokenRegistry

NAME = "library/tiny"
OLD = image(config(), ollama("model", b"GGUF old"))
NEW = image(config(), ollama("model", b"GGUF new"), ollama("system", "Say bye!"))


def test_a_file_that_is_called_as_the_config_s_digest(
    cli: Modelstore, stand_in: TokenRegistry, store_root: Path
) -> None:
    """Blobs without a path are known by their digests meanwhile."""
    made = config()
    layers = [
        Blob(b"a" * 1000, "x/y").annotated(title=f"sha256:{made.hex}"),
        Blob(b"b" * 1001, "x/y").annotated(title="b"),
    ]
    pushed = stand_in.push(NAME, "latest", image(made, *layers, media_type=OCI_MANIFEST))
    found = cli("fetch", "--json", stand_in.source(NAME)).json
    assert found["manifest"] == pushed.digest
    assert digests(Path(found["path"])) == {f"sha256:{made.hex}": layers[0].hex, "b": layers[1].hex}
    for each in pushed.blobs:
        assert blob(store_root, each.digest).read_bytes() == each.data
    cli("verify", stand_in.source(NAME)).ok()


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("more", [-1, 1])
def test_one_digest_in_two_sizes(
    cli: Modelstore, stand_in: TokenRegistry, store_root: Path, which: int, more: int
) -> None:
    layer = Blob(b"a" * 1000, "x/y")
    pushed = image(config(), layer.annotated(title="a"), layer.annotated(title="b"), media_type=OCI_MANIFEST)
    stand_in.push(NAME, "latest", pushed)
    value = json.loads(pushed.raw)
    value["layers"][which]["size"] += more
    stand_in.push_raw(NAME, json.dumps(value).encode())
    cli("fetch", stand_in.source(NAME)).failed(7, "two sizes")
    assert stand_in.of("/blobs/") == []
    assert visible(store_root) == {}


@pytest.mark.parametrize("challenge", ["bearer", "basic"])
def test_only_the_blobs_want_credentials(cli: Modelstore, stand_in: TokenRegistry, challenge: str) -> None:
    """The challenge comes with the blob's refusal, and nowhere else."""
    stand_in.push(NAME, "latest", NEW)
    stand_in.challenge = "bearer" if challenge == "bearer" else "basic"
    stand_in.users = {"me": "c4nary"}
    headers = {"Content-Type": NEW.media_type, "Docker-Content-Digest": NEW.digest}

    def public(request: Request) -> Answer | None:
        return Answer(200, headers, BytesBody(NEW.raw)) if "/manifests/" in request.path else None

    stand_in.script = public
    expected = {"model.gguf": NEW.blobs[1].hex, "system": NEW.blobs[2].hex}
    assert digests(cli("fetch", stand_in.source(NAME, userinfo="me:c4nary")).path) == expected
    assert len(stand_in.of("/token")) == (challenge == "bearer")
    assert sum(request.status == 401 for request in stand_in.requests) <= 3, "once for each blob at most"


@pytest.mark.parametrize(
    "token", ["c4nary-one\nc4nary-two", "c4nary-one\r\nX-Injected: c4nary", "c4n\u20acary"], ids=ascii
)
def test_a_token_that_no_header_can_hold(cli: Modelstore, stand_in: TokenRegistry, tmp_path: Path, token: str) -> None:
    stand_in.push(NAME, "latest", NEW)
    stand_in.challenge = "bearer"
    (tmp_path / "docker").mkdir()
    auths = {"auths": {stand_in.host: {"registrytoken": token}}}
    (tmp_path / "docker" / "config.json").write_text(json.dumps(auths))
    result = replace(cli, options=("-v", *cli.options))("fetch", stand_in.source(NAME))
    assert result.returncode == 2, result
    assert stand_in.host in result.stderr.splitlines()[-1]
    assert "c4n" not in result.stdout + result.stderr
    assert not any({"authorization", "x-injected"} & request.headers.keys() for request in stand_in.requests)


def test_a_pin_after_the_tag_has_moved(cli: Modelstore, stand_in: TokenRegistry, store_root: Path) -> None:
    stand_in.push(NAME, "latest", OLD)
    stand_in.push(NAME, "latest", NEW)
    url = stand_in.source(NAME)
    cli("fetch", f"{url}#sha256={sha256_of(b'nobody has this')}").failed(7, "was expected")
    assert stand_in.of("/blobs/") == []
    assert visible(store_root) == {}
    found = cli("fetch", "--json", f"{url}#{OLD.digest.replace(':', '=')}").json
    assert found["manifest"] == OLD.digest
    assert digests(Path(found["path"])) == {"model.gguf": OLD.blobs[1].hex}
