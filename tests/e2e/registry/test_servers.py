"""The servers of these tests, by themselves: what a test says that they do, they do."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.support.registry import PASSWORD, USER, Registry, basic, config, image, ollama
from tests.support.tokenregistry import Cdn, TokenRegistry

TINY = image(config(), ollama("model", b"GGUF tiny"))
NAME = "library/tiny"
LAYER = f"/v2/{NAME}/blobs/{TINY.blobs[1].digest}"
MANIFEST = f"/v2/{NAME}/manifests/latest"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def ask(url: str, **headers: str) -> tuple[int, bytes, Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with opener.open(urllib.request.Request(url, headers=named), timeout=10) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def test_the_real_one(registry: Registry) -> None:
    registry.push(NAME, "latest", TINY)
    status, raw, headers = ask(f"http://{registry.host}{MANIFEST}", Accept=TINY.media_type)
    assert (status, raw, headers["Docker-Content-Digest"]) == (200, TINY.raw, TINY.digest)
    status, raw, headers = ask(f"http://{registry.host}{LAYER}", Range="bytes=2-4")
    assert (status, raw) == (206, TINY.blobs[1].data[2:5])


def test_the_real_one_with_a_password(locked: Registry) -> None:
    locked.push(NAME, "latest", TINY)
    assert ask(f"http://{locked.host}{MANIFEST}")[0] == 401
    assert ask(f"http://{locked.host}{MANIFEST}", Authorization=basic(f"{USER}:wrong"))[0] == 401
    good = basic(f"{USER}:{PASSWORD}")
    assert ask(f"http://{locked.host}{MANIFEST}", Authorization=good, Accept=TINY.media_type)[1] == TINY.raw


def test_tokens_run_out(stand_in: TokenRegistry) -> None:
    stand_in.push(NAME, "latest", TINY)
    stand_in.challenge, stand_in.uses = "bearer", 2
    status, _, headers = ask(stand_in.url + MANIFEST)
    assert status == 401
    assert headers["WWW-Authenticate"] == (
        f'Bearer realm="{stand_in.url}/token",service="stand-in",scope="repository:library/tiny:pull"'
    )
    assert ask(f"{stand_in.url}/token")[0] == 200
    statuses = [ask(stand_in.url + MANIFEST, Authorization="Bearer canary-token-1")[0] for _ in range(3)]
    assert statuses == [200, 200, 401]
    stand_in.anonymous = False
    assert ask(f"{stand_in.url}/token")[0] == 401


def test_signatures_run_out(stand_in: TokenRegistry, cdn: Cdn) -> None:
    stand_in.push(NAME, "latest", TINY)
    stand_in.cdn, cdn.uses = cdn, 1
    status, _, headers = ask(stand_in.url + LAYER)
    assert status == 307
    first = headers["Location"]
    assert ask(first, Authorization="Bearer x")[0] == 400
    second = ask(stand_in.url + LAYER)[2]["Location"]
    assert [ask(second, Range="bytes=0-3")[:2], ask(second)[0]] == [(206, b"GGUF"), 403]
    assert first != second


@pytest.mark.parametrize("part", ["manifests/latest", f"blobs/{TINY.digest}"])
def test_what_is_not_there(stand_in: TokenRegistry, part: str) -> None:
    status, page, _ = ask(f"{stand_in.url}/v2/library/none/{part}")
    assert status == 404
    assert b"UNKNOWN" in page
