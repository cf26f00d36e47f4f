"""Blobs and manifests as registries give them: redirects, addresses that expire, wrong bytes, wrong headers."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import Modelstore, blob, digests, staged, visible, wait_until
from tests.support.httpserver import BytesBody, PatternBody
from tests.support.registry import OCI_INDEX, OCI_MANIFEST, OLLAMA, Blob, Image, config, image, ollama
from tests.support.tokenregistry import Answer, Cdn, Request, TokenRegistry, refusal

Start = Callable[..., "subprocess.Popen[str]"]
MIB = 1 << 20
CHUNK = 16 * MIB
SIZE = 3 * CHUNK + 54321
NAME = "library/tiny"
TINY = image(config(), ollama("model", b"GGUF tiny"), ollama("system", "Say bye!"))
FILES = {"model.gguf": TINY.blobs[1].hex, "system": TINY.blobs[2].hex}
ACCEPTED = {
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    OCI_MANIFEST,
    OCI_INDEX,
}


@pytest.fixture(scope="module")
def large() -> Image:
    return image(config(), Blob(b"".join(PatternBody(SIZE).read(0, SIZE)), f"{OLLAMA}model"))


def blob_bytes(requests: list[Request]) -> int:
    return sum(request.body_bytes for request in requests)


def test_what_is_asked(cli: Modelstore, stand_in: TokenRegistry) -> None:
    """One request for the manifest, one for each small blob; no `/v2/`, no HEAD, no catalogue."""
    stand_in.push(NAME, "latest", TINY)
    cli("fetch", stand_in.source(NAME)).ok()
    asked = sorted((request.method, request.path) for request in stand_in.requests)
    assert asked == sorted(
        [("GET", f"/v2/{NAME}/manifests/latest"), *(("GET", f"/v2/{NAME}/blobs/{part.digest}") for part in TINY.blobs)]
    )
    (manifest,) = stand_in.of("/manifests/")
    assert {part.split(";")[0].strip() for part in manifest.headers["accept"].split(",")} >= ACCEPTED
    assert manifest.headers["user-agent"].startswith(("modelstore", "llm-modelstore"))


def test_a_warm_hit_asks_nothing(cli: Modelstore, stand_in: TokenRegistry) -> None:
    stand_in.push(NAME, "latest", TINY)
    first = cli("fetch", stand_in.source(NAME)).path
    stand_in.forget()
    assert cli("fetch", stand_in.source(NAME)).path == first
    assert cli("fetch", f"{stand_in.source(NAME)}#sha256={TINY.digest[7:]}").path == first
    assert stand_in.requests == []
    cli("fetch", "--refresh", stand_in.source(NAME)).ok()
    assert [request.path for request in stand_in.requests] == [f"/v2/{NAME}/manifests/latest"]


def test_refresh_without_a_registry(cli: Modelstore) -> None:
    """What is there stands, with a warning."""
    with TokenRegistry() as registry:
        registry.push(NAME, "latest", TINY)
        first = cli("fetch", registry.source(NAME)).path
    result = cli("fetch", "--refresh", registry.source(NAME))
    assert result.path == first
    assert "warning" in result.stderr


@pytest.mark.parametrize("ranges", [True, False])
def test_large(cli: Modelstore, stand_in: TokenRegistry, store_root: Path, large: Image, ranges: bool) -> None:
    stand_in.push(NAME, "latest", large)
    stand_in.ranges = ranges
    cli("fetch", stand_in.source(NAME)).ok()
    assert blob(store_root, large.blobs[1].digest).read_bytes() == large.blobs[1].data
    assert blob_bytes(stand_in.of("/blobs/")) < (SIZE + MIB if ranges else 2 * SIZE)
    if ranges:
        parts = [request.headers.get("range") for request in stand_in.of(large.blobs[1].digest) if request.body_bytes]
        assert len(set(parts)) == len(parts) >= 3


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirected_blobs(cli: Modelstore, stand_in: TokenRegistry, cdn: Cdn, code: int) -> None:
    """As Ollama's registry and Docker Hub do: the signed address gets no token and no password."""
    stand_in.push(NAME, "latest", TINY)
    stand_in.challenge = "bearer"
    cdn.blobs |= {part.digest: BytesBody(part.data) for part in TINY.blobs}

    def script(request: Request) -> Answer | None:
        path, headers = request.path, request.headers
        if "/blobs/" not in path or "authorization" not in headers:
            return None
        return Answer(code, {"Location": cdn.sign(path.rpartition("/")[2])})

    stand_in.script = script
    assert digests(cli("fetch", stand_in.source(NAME)).path) == FILES
    assert cdn.requests
    assert not any("authorization" in request.headers for request in cdn.requests)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"], ids=["another port", "another host"])
def test_a_redirected_manifest(cli: Modelstore, stand_in: TokenRegistry, host: str) -> None:
    """A mirror, or somebody else: it gives what the digests prove, and gets no token."""
    stand_in.push(NAME, "latest", TINY)
    stand_in.challenge = "bearer"
    with TokenRegistry(host) as mirror:
        mirror.push(NAME, "latest", TINY)

        def script(request: Request) -> Answer | None:
            away = request.path.startswith("/v2/") and "authorization" in request.headers
            return Answer(307, {"Location": mirror.url + request.url}) if away else None

        stand_in.script = script
        assert digests(cli("fetch", stand_in.source(NAME)).path) == FILES
        assert len(mirror.requests) == 1 + len(TINY.blobs)
        assert not any("authorization" in request.headers for request in mirror.requests)


@pytest.mark.parametrize("uses", [1, 2])
def test_signed_addresses_that_expire(
    cli: Modelstore, stand_in: TokenRegistry, cdn: Cdn, store_root: Path, large: Image, uses: int
) -> None:
    """Each is good for a request or two; then the registry is asked for another, and no byte comes twice."""
    stand_in.push(NAME, "latest", large)
    stand_in.cdn, cdn.uses = cdn, uses
    result = cli("-v", "fetch", stand_in.source(NAME))
    assert digests(result.path) == {"model.gguf": large.blobs[1].hex}
    assert blob_bytes([request for request in cdn.requests if request.status < 300]) < SIZE + MIB
    written = result.stdout + result.stderr + "".join(visible(store_root))
    assert "CANARYSIGNATURE" not in written
    assert not any(b"CANARYSIGNATURE" in path.read_bytes() for path in store_root.rglob("*.json"))


def test_signed_addresses_that_were_never_good(
    cli: Modelstore, stand_in: TokenRegistry, cdn: Cdn, store_root: Path
) -> None:
    stand_in.push(NAME, "latest", TINY)
    stand_in.cdn, cdn.uses = cdn, 0
    result = cli("-v", "fetch", stand_in.source(NAME))
    assert result.returncode in (4, 5), result
    assert "CANARYSIGNATURE" not in result.stderr
    assert len(cdn.requests) <= 24
    assert visible(store_root) == {}


@pytest.mark.parametrize(
    "target",
    ["http://169.254.169.254/latest/meta-data", "http://2852039166/x", "http://[fd00:ec2::254]/x", "file:///etc/hostname"],
)  # fmt: skip
def test_a_blob_redirected_to_where_it_must_not_be(
    cli: Modelstore, stand_in: TokenRegistry, store_root: Path, target: str
) -> None:
    """CVE-2026-5530: a registry that sends us to the cloud's own services."""
    stand_in.push(NAME, "latest", TINY)
    stand_in.redirect = target
    cli("fetch", stand_in.source(NAME)).failed(5)
    assert visible(store_root) == {}


def test_a_manifest_redirected_to_where_it_must_not_be(cli: Modelstore, stand_in: TokenRegistry) -> None:
    stand_in.script = lambda _: Answer(307, {"Location": "http://169.254.169.254/latest/meta-data"})
    cli("fetch", stand_in.source(NAME)).failed(5)


def test_killed_half_way(
    cli: Modelstore, stand_in: TokenRegistry, start: Start, store_root: Path, large: Image
) -> None:
    """SIGKILL: the next fetch goes on from the chunks that were whole."""
    stand_in.push(NAME, "latest", large)
    stand_in.pause_at = 2 * CHUNK + MIB
    process = start(cli, "fetch", stand_in.source(NAME), "--connections", "1")
    wait_until(stand_in.paused.is_set, process)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    stand_in.pause_at = None
    stand_in.resume.set()
    stand_in.forget()
    result = cli("fetch", stand_in.source(NAME), "--json").json
    assert digests(Path(result["path"])) == {"model.gguf": large.blobs[1].hex}
    assert result["bytes"]["reused"] >= CHUNK
    assert blob_bytes(stand_in.of(large.blobs[1].digest)) <= SIZE - CHUNK
    assert staged(store_root) == []


# -- wrong bytes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [b"GGUF tinY", b"GGUF tin", b"GGUF tiny!", b""])
@pytest.mark.parametrize("part", [0, 1], ids=["config", "layer"])
def test_a_blob_of_other_bytes(
    cli: Modelstore, stand_in: TokenRegistry, store_root: Path, wrong: bytes, part: int
) -> None:
    stand_in.push(NAME, "latest", TINY)
    stand_in.blobs[TINY.blobs[part].digest] = BytesBody(wrong)
    result = cli("fetch", stand_in.source(NAME))
    assert result.returncode in ((7,) if len(wrong) == len(TINY.blobs[part].data) else (5, 6, 7)), result
    result.failed(result.returncode)
    assert not any(name.startswith((".modelstore/refs", "models")) for name in visible(store_root))
    assert not blob(store_root, TINY.blobs[part].digest).exists()


def test_a_large_blob_with_one_wrong_bit(
    cli: Modelstore, stand_in: TokenRegistry, store_root: Path, large: Image
) -> None:
    stand_in.push(NAME, "latest", large)
    data = bytearray(large.blobs[1].data)
    data[2 * CHUNK + 5] ^= 1
    stand_in.blobs[large.blobs[1].digest] = BytesBody(bytes(data))
    cli("fetch", stand_in.source(NAME)).failed(7)
    assert not (store_root / "models").exists()


@pytest.mark.parametrize("claimed", [0, 8, 10, 10**15, 2**63, 2**70])
def test_a_descriptor_of_another_size(cli: Modelstore, stand_in: TokenRegistry, store_root: Path, claimed: int) -> None:
    """The manifest says another size than the registry has: the digest cannot be met."""
    value = json.loads(TINY.raw)
    value["layers"][0]["size"] = claimed
    stand_in.push(NAME, "latest", replace(TINY, raw=json.dumps(value).encode()))
    result = cli("fetch", stand_in.source(NAME))
    assert result.returncode in (5, 6, 7, 10), result
    result.failed(result.returncode)
    assert not any(name.startswith((".modelstore/refs", "models")) for name in visible(store_root))


@pytest.mark.parametrize("header", ["Docker-Content-Digest", "Ollama-Content-Digest"])
@pytest.mark.parametrize("value", ["sha256:" + "0" * 64, "0" * 64])
def test_a_manifest_that_is_not_the_one_it_says(
    cli: Modelstore, stand_in: TokenRegistry, store_root: Path, header: str, value: str
) -> None:
    stand_in.push(NAME, "latest", TINY)
    stand_in.manifest_headers = {"Docker-Content-Digest": None, header: value}
    cli("fetch", stand_in.source(NAME)).failed(7)
    assert visible(store_root) == {}


@pytest.mark.parametrize(
    "headers",
    [
        {"Docker-Content-Digest": None},
        {"Docker-Content-Digest": None, "Ollama-Content-Digest": TINY.digest[7:]},
        {"Ollama-Content-Digest": TINY.digest},
        {"Content-Type": "text/plain; charset=utf-8"},
        {"Content-Type": None},
        {"Content-Type": "application/json"},
    ],
    ids=str,
)
def test_headers_that_are_odd_but_honest(
    cli: Modelstore, stand_in: TokenRegistry, headers: dict[str, str | None]
) -> None:
    stand_in.push(NAME, "latest", TINY)
    stand_in.manifest_headers = headers
    found = cli("fetch", stand_in.source(NAME), "--json").json
    assert found["manifest"] == TINY.digest
    assert digests(Path(found["path"])) == FILES


# -- answers that are errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "said", "code"),
    [(412, "OF_A_NEWER_CLIENT", 5),
     (404, "MANIFEST_UNKNOWN", 3), (404, "NAME_UNKNOWN", 3), (401, "UNAUTHORIZED", 4), (403, "DENIED", 4),
     (500, "UNKNOWN", 5), (503, "UNAVAILABLE", 5), (418, "TEAPOT", 5)],
)  # fmt: skip
def test_errors_for_the_manifest(cli: Modelstore, stand_in: TokenRegistry, status: int, said: str, code: int) -> None:
    stand_in.script = lambda _: refusal(status, said)
    cli("fetch", stand_in.source(NAME)).failed(code)
    assert len(stand_in.requests) <= 8


def test_what_the_hub_says_of_a_tag(cli: Modelstore, stand_in: TokenRegistry) -> None:
    """hf.co answers 400 with the reason, which is worth more than its number; and it is shown on one line."""
    said = 'The specified tag is not a valid quantization scheme.\x1b[31m\nPlease use "Q4_K_M"'
    stand_in.script = lambda _: Answer(400, {}, BytesBody(json.dumps({"error": said}).encode()))
    result = cli("fetch", stand_in.source(NAME))
    assert result.returncode in (2, 3, 5), result
    result.failed(result.returncode, "not a valid quantization scheme")
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize("part", ["/manifests/", "/blobs/"])
def test_too_many_requests(cli: Modelstore, stand_in: TokenRegistry, part: str) -> None:
    stand_in.push(NAME, "latest", TINY)
    refused: list[Request] = []

    def script(request: Request) -> Answer | None:
        if part not in request.path or len(refused) == 2:
            return None
        refused.append(request)
        return refusal(429, "TOOMANYREQUESTS", Retry_After="1")

    stand_in.script = script
    assert digests(cli("fetch", stand_in.source(NAME)).path) == FILES
    assert len(refused) == 2


def test_a_blob_that_is_gone(cli: Modelstore, stand_in: TokenRegistry, store_root: Path) -> None:
    stand_in.push(NAME, "latest", TINY)
    del stand_in.blobs[TINY.blobs[1].digest]
    result = cli("fetch", stand_in.source(NAME))
    assert result.returncode in (3, 7), result
    result.failed(result.returncode)
    assert not (store_root / "models").exists()
