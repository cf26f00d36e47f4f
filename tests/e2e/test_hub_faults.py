"""A Hub, or its CDN, that does wrong: flipped bits, lying headers, rate limits, addresses that expire, garbage.

Where the real client is fooled, the test shows that, too: it is what `modelstore` is measured against.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.server import Script
from tests.faults.wire import Answer, Request
from tests.support import Modelstore, Result, digests, sha256_of, staged, visible
from tests.support.httpserver import HttpServer, PatternBody
from tests.support.hub import Hub, scripted
from tests.support.hub_client import RealClient, Refusal

CHUNK = 16 << 20
URL = "hf://acme/tiny"
CONFIG = b'{"model_type": "llama", "hidden_size": 16}'
WEIGHTS = PatternBody(200_001)
FILES: dict[str, Any] = {"config.json": CONFIG, "model.safetensors": WEIGHTS}
SUMS = {"config.json": sha256_of(CONFIG), "model.safetensors": WEIGHTS.sha256}


@pytest.fixture
def tiny(hub: Hub) -> Hub:
    hub.repo("acme/tiny", FILES)
    return hub


def when(condition: Callable[[Request], object], act: Script, times: int | None = None) -> Script:
    """A script that acts on the first `times` requests for which `condition` holds, or on all of them."""
    left = [times]

    def script(request: Request, answer: Answer) -> None:
        if condition(request) and left[0] != 0:
            left[0] = None if left[0] is None else left[0] - 1
            act(request, answer)

    return script


def asks(pattern: str) -> Callable[[Request], object]:
    return lambda request: re.search(pattern, request.path)


def got(request: Request) -> bool:
    return request.method == "GET"


def without(*names: str) -> Script:
    def script(_: Request, answer: Answer) -> None:
        for name in names:
            answer.set(name)

    return script


def replaced(status: int, page: bytes = b"", **headers: str) -> Script:
    return lambda _, answer: answer.replace(status, page, **headers)


def assert_nothing(result: Result, root: Path, *codes: int) -> None:
    """It failed in a known way, and nothing of the model can be seen."""
    result.failed(result.returncode)
    assert result.returncode in codes, result
    assert not [name for name in visible(root) if not name.startswith("blobs/")]
    for name, what in visible(root).items():
        assert name.startswith("blobs/sha256-"), name
        assert what == f"file {name.removeprefix('blobs/sha256-')}"


# ---------------------------------------------------------------- wrong bytes


@pytest.mark.parametrize("path", ["config.json", "model.safetensors"], ids=["git", "lfs"])
def test_a_flipped_bit(hf: Modelstore, tiny: Hub, real_client: RealClient, store_root: Path, path: str) -> None:
    """The real client keeps it and gives it again; we refuse it, and take the right bytes when they come."""

    def flip(_: Request, answer: Answer) -> None:
        answer.flip = 20

    server = tiny.cdn if path == "model.safetensors" else tiny
    with scripted(server, when(asks(r"/resolve/.*/config.json|/repos/"), flip)):
        theirs = real_client.snapshot("acme/tiny")
        wrong = digests(theirs)
        assert wrong[path] != SUMS[path]
        result = hf("fetch", URL)
        assert_nothing(result, store_root, 7)
        assert path in result.stderr
    assert digests(real_client.snapshot("acme/tiny")) == wrong, "and it would not notice for good"
    assert digests(hf("fetch", URL).path) == SUMS
    assert staged(store_root) == []


def test_a_single_flipped_bit_is_not_kept(hf: Modelstore, tiny: Hub, store_root: Path) -> None:
    def flip(_: Request, answer: Answer) -> None:
        answer.flip = 100_000

    with scripted(tiny.cdn, when(got, flip, times=1)):
        result = hf("fetch", URL)
    if result.returncode:
        assert_nothing(result, store_root, 7)
        result = hf("fetch", URL)
    assert digests(result.path) == SUMS


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("path", ["config.json", "model.safetensors"], ids=["git", "lfs"])
def test_a_file_of_another_length(hf: Modelstore, tiny: Hub, store_root: Path, path: str, by: int) -> None:
    """What is there is not what the tree lists."""
    entry = tiny.repos["acme/tiny"].head.files[path]
    longer = PatternBody(entry.body.size + by)

    def serve(request: Request, answer: Answer) -> None:
        answer.replace(200, b"".join(longer.read(0, longer.size)))

    server = tiny.cdn if entry.lfs else tiny
    with scripted(server, when(asks(rf"/resolve/.*/{path}|/repos/"), serve)):
        assert_nothing(hf("fetch", URL), store_root, 5, 6, 7)
    assert digests(hf("fetch", URL).path) == SUMS


def test_a_body_cut_short_once(hf: Modelstore, tiny: Hub) -> None:
    def cut(_: Request, answer: Answer) -> None:
        answer.strike, answer.at = "close", 70_000

    with scripted(tiny.cdn, when(got, cut, times=1)):
        assert digests(hf("fetch", URL).path) == SUMS


def test_a_body_cut_short_for_good(hf: Modelstore, tiny: Hub, real_client: RealClient, store_root: Path) -> None:
    """With a Content-Length that fits what is sent."""

    def shorter(_: Request, answer: Answer) -> None:
        answer.stop = min(answer.stop, 70_000)
        answer.set("Content-Length", str(max(0, answer.stop - answer.start)))

    with scripted(tiny.cdn, when(got, shorter)):
        with pytest.raises(Refusal):
            real_client.snapshot("acme/tiny")
        assert_nothing(hf("fetch", URL), store_root, 5, 6, 7)
    assert digests(hf("fetch", URL).path) == SUMS


# ---------------------------------------------------------------- headers of the first hop


HEADERS = ["X-Repo-Commit", "ETag", "X-Linked-Size", "X-Linked-ETag", "Accept-Ranges"]


@pytest.mark.parametrize("names", [*([name] for name in HEADERS), HEADERS], ids=str)
def test_missing_headers_are_not_missed(hf: Modelstore, tiny: Hub, names: list[str]) -> None:
    with scripted(tiny, when(asks("/resolve/"), without(*names))):
        assert digests(hf("fetch", URL).path) == SUMS


@pytest.mark.parametrize("name", ["X-Repo-Commit", "ETag"])
def test_the_real_client_misses_them(tiny: Hub, real_client: RealClient, name: str) -> None:
    """So that the test above is known to take something away."""
    with scripted(tiny, when(asks("/resolve/.*config.json"), without(name))), pytest.raises(Refusal):
        real_client.snapshot("acme/tiny")


def test_a_cdn_that_names_no_validator_and_no_ranges(hf: Modelstore, tiny: Hub) -> None:
    def bare(request: Request, answer: Answer) -> None:
        if answer.status == 206:
            whole = b"".join(WEIGHTS.read(0, WEIGHTS.size))
            answer.replace(200, whole)
        without("ETag", "Accept-Ranges")(request, answer)

    with scripted(tiny.cdn, bare):
        assert digests(hf("fetch", URL).path) == SUMS


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-Repo-Commit", "0" * 40), ("X-Linked-Size", "200002"), ("X-Linked-ETag", f'"{"0" * 64}"')],
)
def test_headers_that_disagree_with_the_tree(
    hf: Modelstore, tiny: Hub, store_root: Path, name: str, value: str
) -> None:
    with scripted(tiny, when(asks("/resolve/.*safetensors"), lambda _, answer: answer.set(name, value))):
        assert_nothing(hf("fetch", URL), store_root, 6)


# ---------------------------------------------------------------- rate limits


LIMITS = [{"Retry_After": "1"}, {"ratelimit": '"resolvers";r=0;t=1'}]


@pytest.mark.parametrize("headers", LIMITS, ids=str)
@pytest.mark.parametrize("where", ["/revision/", "/tree/", "/resolve/.*config.json", "/repos/"])
def test_a_rate_limit_is_waited_out(
    hf: Modelstore, tiny: Hub, real_client: RealClient, where: str, headers: dict[str, str]
) -> None:
    policy = '"fixed window";"resolvers";q=3000;w=300'
    script = when(asks(where), replaced(429, b"{}", RateLimit_Policy=policy, **headers), times=1)
    tiny.script = tiny.cdn.script = script
    assert digests(hf("fetch", URL).path) == SUMS
    log = sorted([*tiny.log, *tiny.cdn.log], key=lambda request: request.begun)
    (limited,) = [request for request in log if request.status == 429]
    resource = re.sub("/repos/.*", "safetensors", limited.path)  # on the CDN, or by way of the Hub again
    again = [request for request in log if request.begun > limited.begun and resource in request.path]
    again += [request for request in log if request.begun > limited.begun and request.path == limited.path]
    assert again, log
    assert min(request.begun for request in again) - limited.begun >= 0.95


def test_a_rate_limit_without_end(hf: Modelstore, tiny: Hub, store_root: Path) -> None:
    with scripted(tiny, replaced(429, b"{}", Retry_After="0")):
        result = hf("fetch", URL, timeout=110)
        assert_nothing(result, store_root, 5)
        assert "429" in result.stderr or "rate" in result.stderr.lower()
    assert len(tiny.log) <= 32


# ---------------------------------------------------------------- addresses that expire


def test_an_address_that_expires_in_the_middle(hf: Modelstore, hub: Hub) -> None:
    """It is asked for anew, at the same commit, and what has come already is kept."""
    large = PatternBody(4 * CHUNK + 99)
    hub.repo("acme/tiny", {"config.json": CONFIG, "model.safetensors": large})

    def expire(request: Request, answer: Answer) -> None:
        if sum(line.status == 206 for line in hub.cdn.log) == 2:
            hub.cdn.expire()

    with scripted(hub.cdn, expire):
        result = hf("fetch", URL, "--connections", "2")
    assert digests(result.path)["model.safetensors"] == large.sha256
    assert any(request.status == 403 for request in hub.cdn.log)
    assert hub.cdn.bytes_sent() <= large.size + 2 * CHUNK
    assert len(hub.api()) == 2


def test_addresses_that_are_never_good(hf: Modelstore, tiny: Hub, store_root: Path) -> None:
    with scripted(tiny, lambda *_: tiny.cdn.expire()):
        assert_nothing(hf("fetch", URL), store_root, 4, 5)
    assert len(tiny.cdn.log) <= 8


# ---------------------------------------------------------------- things move


def test_a_file_that_is_gone_when_it_is_read(hf: Modelstore, tiny: Hub, store_root: Path) -> None:
    page = replaced(404, b"{}", X_Error_Code="EntryNotFound")
    with scripted(tiny, when(asks("/resolve/.*safetensors"), page)):
        assert_nothing(hf("fetch", URL), store_root, 3, 6)


def test_a_commit_that_is_gone_when_it_is_listed(hf: Modelstore, tiny: Hub, store_root: Path) -> None:
    page = replaced(404, b"{}", X_Error_Code="RevisionNotFound")
    with scripted(tiny, when(asks("/tree/"), page)):
        assert_nothing(hf("fetch", URL), store_root, 3, 6)


def test_a_server_error_once_is_no_matter(hf: Modelstore, tiny: Hub) -> None:
    for where in ("/revision/", "/tree/", "/resolve/"):
        tiny.script = when(asks(where), replaced(503, b"upstream"), times=1)
        assert digests(hf("fetch", "--refresh", URL).path) == SUMS


# ---------------------------------------------------------------- garbage


def entry(**fields: object) -> list[dict[str, object]]:
    return [{"type": "file", "oid": "0" * 40, "size": 3, "path": "config.json", **fields}]


def lfs(**fields: object) -> dict[str, object]:
    return {"oid": "0" * 64, "size": 3, "pointerSize": 127, **fields}


GARBAGE: dict[str, tuple[str, object]] = {
    "revision: nothing": ("/revision/", b""),
    "revision: a page": ("/revision/", b"<!doctype html><title>Welcome to this network</title>"),
    "revision: a list": ("/revision/", []),
    "revision: no commit": ("/revision/", {"id": "acme/tiny"}),
    "revision: a number": ("/revision/", {"id": "acme/tiny", "sha": 5}),
    "revision: a path": ("/revision/", {"id": "acme/tiny", "sha": "../../x"}),
    "tree: half": ("/tree/", b'[{"type": "file", "oid": "00'),
    "tree: a page": ("/tree/", b"<!doctype html><title>Welcome to this network</title>"),
    "tree: no list": ("/tree/", {"error": "x"}),
    "tree: of numbers": ("/tree/", [1, 2]),
    "tree: no fields": ("/tree/", [{"type": "file"}]),
    "tree: size below 0": ("/tree/", entry(size=-1)),
    "tree: size is a word": ("/tree/", entry(size="3")),
    "tree: size is not whole": ("/tree/", entry(size=3.5)),
    "tree: SHA-1 is none": ("/tree/", entry(oid="zz")),
    "tree: SHA-256 is none": ("/tree/", entry(lfs=lfs(oid="../../../etc"))),
    "tree: size is a truth": ("/tree/", entry(size=True)),
    "tree: upwards": ("/tree/", entry(path="../../escaped")),
    "tree: absolute": ("/tree/", entry(path="/escaped")),
    "tree: no name": ("/tree/", entry(path="")),
    "tree: a name with a zero": ("/tree/", entry(path="a\0b")),
    "tree: a path is a list": ("/tree/", entry(path=["config.json"])),
    "tree: twice the same": ("/tree/", entry() + entry(size=4)),
    "tree: a file that is a folder": ("/tree/", entry(path="a") + entry(path="a/b")),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_called_so(hf: Modelstore, tiny: Hub, store_root: Path, tmp_path: Path, name: str) -> None:
    where, page = GARBAGE[name]
    raw = page if isinstance(page, bytes) else json.dumps(page).encode()
    with scripted(tiny, when(asks(where), replaced(200, raw, Content_Type="application/json"))):
        assert_nothing(hf("fetch", URL), store_root, 5, 7)
    assert not any("/resolve/" in line for line in tiny.lines()), "no byte is asked for on such grounds"
    assert not list(tmp_path.rglob("escaped*"))


def test_a_listing_without_end(hf: Modelstore, tiny: Hub, store_root: Path) -> None:
    """The next page is the same one, for ever."""

    def again(request: Request, answer: Answer) -> None:
        answer.set("Link", f'<{tiny.url}{request.path}?{request.query}>; rel="next"')

    with scripted(tiny, when(asks("/tree/"), again)):
        assert_nothing(hf("fetch", URL), store_root, 5, 7)


def test_a_redirect_to_credentials_of_the_cloud(hf: Modelstore, tiny: Hub, store_root: Path) -> None:
    to = replaced(302, Location="http://169.254.169.254/latest/meta-data")
    with scripted(tiny, when(asks("/resolve/"), to)):
        assert_nothing(hf("fetch", URL), store_root, 5)


def test_an_api_that_redirects_elsewhere_does_not_get_the_token(hf: Modelstore, tiny: Hub) -> None:
    with HttpServer("127.0.0.2") as far:
        page = far.add("/elsewhere", b"{}")
        tiny.tokens.add("reader")
        with scripted(tiny, when(asks("/revision/"), replaced(307, Location=page.url))):
            result = hf.with_env(HF_TOKEN="reader")("fetch", URL)
        assert result.returncode in (3, 4, 5, 7), result
        assert not any("authorization" in request.headers for request in far.requests)
