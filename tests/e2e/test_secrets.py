"""Credentials reach their own host and nothing else: no output, no log, no error, no file, no file name."""

from __future__ import annotations

import base64
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support import Modelstore, Result, digests, key_of
from tests.support.httpserver import HttpServer, PatternBody

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 99_999
TWO_CHUNKS = (1 << 24) + 99
USER, PASSWORD = "canary-user", "canary-p@ss"
USERINFO = f"{USER}:canary-p%40ss"
QUERY = (
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=CANARYKEY%2F20260101&X-Amz-Date=20260101T000000Z"
    "&X-Amz-Expires=3600&X-Amz-Security-Token=CANARYTOKEN&X-Amz-SignedHeaders=host&X-Amz-Signature=CANARYSIGNATURE"
)
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
SECRETS = (PASSWORD, "canary-p%40ss", BASIC, "CANARYKEY", "CANARYTOKEN", "CANARYSIGNATURE", "CANARYELSEWHERE")
LOUD = pytest.mark.parametrize("options", [("-v",), ("-v", "--log-format", "json")], ids=["text", "json"])


@dataclass
class Watch:
    """Runs the command and looks for the secrets in whatever it says or leaves."""

    cli: Modelstore
    places: tuple[Path, ...]

    def __call__(self, *args: str, options: tuple[str, ...] = (), env: dict[str, str] | None = None) -> Result:
        command = Modelstore(self.cli.home, (*self.cli.options, *options), {**self.cli.env, **(env or {})})
        result = command(*args)
        said = [result.stdout.encode(), result.stderr.encode()]
        left = [path for place in self.places for path in place.rglob("*")]
        said += [str(path).encode() for path in left] + [path.read_bytes() for path in left if path.is_file()]
        for secret in SECRETS:
            assert not any(secret.encode() in text for text in said), (secret, result)
        return result


@pytest.fixture
def watch(cli: Modelstore, store_root: Path, tmp_path: Path) -> Watch:
    return Watch(cli, (store_root, cli.home, tmp_path / "serve"))


def secret_url(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{USERINFO}@{rest}?{QUERY}"


@LOUD
def test_a_fetch_and_every_look_at_it(
    watch: Watch, http_server: HttpServer, store_root: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    origin = http_server.add("/m.gguf", PatternBody(SIZE), auth=f"{USER}:{PASSWORD}", head=False)
    url = secret_url(origin.url)
    key = key_of(origin.url)[:16]
    found = watch("fetch", "--json", url, options=options).json
    assert (found["key"], found["source"]) == (key, origin.url)
    assert digests(store_root / "models" / key) == {"m.gguf": origin.body.sha256}
    assert all(request.path == f"/m.gguf?{QUERY}" for request in http_server.requests), "sent as given"
    assert all(request.headers["authorization"] == f"Basic {BASIC}" for request in http_server.requests)
    watch("fetch", url, "--to", str(tmp_path / "serve"), options=options).ok()
    for command in (
        ("path", url),
        ("show", url),
        ("key", "--explain", url),
        ("list",),
        ("list", "--json"),
        ("verify", url),
    ):
        watch(*command, options=options).ok()
    watch("fetch", "--refresh", url, options=options).ok()
    watch("remove", url, options=options).ok()


def test_the_signature_is_not_part_of_the_key(watch: Watch, http_server: HttpServer) -> None:
    origin = http_server.add("/m.gguf", PatternBody(SIZE), auth=f"{USER}:{PASSWORD}")
    first = watch("fetch", secret_url(origin.url)).path
    asked = len(http_server.requests)
    assert watch("fetch", secret_url(origin.url).replace("CANARYSIGNATURE", "ANOTHER")).path == first
    assert watch("fetch", origin.url).path == first
    assert len(http_server.requests) == asked


@pytest.fixture
def unused_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


FAILURES: dict[str, tuple[int, dict[str, object]]] = {
    "not found": (3, {"status": 404}),
    "forbidden": (4, {"status": 403}),
    "wrong password": (4, {"auth": "somebody:else"}),
    "server error": (5, {"status": 500}),
    "changed": (6, {"changes_after": 1, "changed": PatternBody(TWO_CHUNKS, seed=1)}),
    "redirect loop": (5, {"redirect": "/m.gguf?token=CANARYELSEWHERE&sig=CANARYELSEWHERE"}),
}


@LOUD
@pytest.mark.parametrize("failure", FAILURES)
def test_errors(watch: Watch, http_server: HttpServer, failure: str, options: tuple[str, ...]) -> None:
    code, behaviour = FAILURES[failure]
    origin = http_server.add("/m.gguf", PatternBody(TWO_CHUNKS), **behaviour)
    result = watch("fetch", secret_url(origin.url), options=options)
    assert result.returncode == code, result
    assert http_server.requests, "it was asked, with the secrets"


def test_error_after_every_retry(watch: Watch, http_server: HttpServer) -> None:
    origin = http_server.add("/m.gguf", PatternBody(SIZE), ranges=False, cut_at=1000)
    assert watch("fetch", secret_url(origin.url), options=("-v", "--log-format", "json")).returncode == 5
    assert len(http_server.requests) > 1


@LOUD
@pytest.mark.parametrize(
    ("form", "code"),
    [
        ("http://{userinfo}@127.0.0.1:{port}/m.gguf?{query}", 5),
        ("https://{userinfo}@127.0.0.1:{port}/m.gguf?{query}", 5),
        ("http://{userinfo}@127.0.0.1:{port}/m.gguf?{query}#sha256=nonsense", 2),
        ("http://{userinfo}@127.0.0.1:port/m.gguf?{query}", 2),
        ("http://{userinfo}@[::1/m.gguf?{query}", 2),
        ("http://{userinfo}@/m.gguf?{query}", 2),
        ("http://{userinfo}@127.0.0.1:{port}/..%2f..%2fx?{query}", 2),
        ("foo://{userinfo}@127.0.0.1/m.gguf?{query}", 2),
        ("http://{userinfo}@127.0.0.1:{port}/m\n.gguf?{query}", 2),
    ],
)
def test_urls_that_go_nowhere(watch: Watch, unused_port: int, form: str, code: int, options: tuple[str, ...]) -> None:
    url = form.format(userinfo=USERINFO, query=QUERY, port=unused_port)
    assert watch("fetch", url, options=options).returncode == code
    assert watch("fetch", "--offline", url, options=options).returncode in (code, 11)


@LOUD
@pytest.mark.parametrize("status", [200, 403])
def test_redirect_to_another_host(watch: Watch, http_server: HttpServer, status: int, options: tuple[str, ...]) -> None:
    """As the Hub does: a signed address on another host, which must get its own query and not our password."""
    with HttpServer("127.0.0.2") as cdn:
        behaviour = {} if status == 200 else {"status": status}
        elsewhere = cdn.add("/x", PatternBody(SIZE), **behaviour)
        query = "Policy=CANARYELSEWHERE&Signature=CANARYELSEWHERE&Key-Pair-Id=CANARYELSEWHERE"
        origin = http_server.add("/m.gguf", redirect=f"{elsewhere.url}?{query}", auth=f"{USER}:{PASSWORD}")
        result = watch("fetch", secret_url(origin.url), options=options)
        assert result.returncode == (0 if status == 200 else 4), result
        assert {request.path for request in cdn.requests} == {f"/x?{query}"}
        for request in cdn.requests:
            assert "authorization" not in request.headers
            assert not any(secret in str(request.headers) for secret in SECRETS[:-1])


def test_secret_in_the_environment(watch: Watch, http_server: HttpServer) -> None:
    """A configuration error does not print what it was given."""
    origin = http_server.add("/m.gguf", b"weights")
    result = watch("fetch", origin.url, env={"MODELSTORE_TOKEN": "CANARYTOKEN"})
    assert result.returncode == 2


def test_path_of_a_secret_url_before_and_after(watch: Watch, http_server: HttpServer) -> None:
    url = secret_url(http_server.add("/m.gguf", b"weights").url)
    assert [watch(name, url).returncode for name in ("path", "fetch", "path", "remove", "path")] == [11, 0, 0, 0, 11]
