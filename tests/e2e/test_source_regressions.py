"""What a review of the sources found, from the outside: each of these was wrong once. Registries are elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.wire import Answer, Request
from tests.support import Modelstore, Result, blob, digests, flip_byte, sha256_of, visible
from tests.support.httpserver import HttpServer
from tests.support.hub import Hub, scripted
from tests.support.s3 import S3, hashed, kind

BODY = b"weights " * 5000
FILES = {"config.json": b"{}", "model.safetensors": BODY}


@pytest.fixture
def elsewhere() -> Iterator[HttpServer]:
    """Another host."""
    with HttpServer("127.0.0.2") as server:
        yield server


def loud(command: Modelstore) -> Modelstore:
    return replace(command, options=("-v", *command.options))


# -- https -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.%32", "127%2e0.0.2", "%31%32%37.0.0.2"])
def test_a_redirect_to_a_host_that_two_parsers_read_as_two(
    cli: Modelstore, http_server: HttpServer, elsewhere: HttpServer, store_root: Path, host: str
) -> None:
    elsewhere.add("/m.gguf", BODY)
    origin = http_server.add("/m.gguf", redirect=f"http://{host}:{elsewhere.port}/m.gguf")
    cli("fetch", origin.url).failed(5, "not a web address")
    assert elsewhere.requests == []
    assert visible(store_root) == {}
    origin.redirect = f"{elsewhere.url}/m.gguf"
    assert digests(cli("fetch", origin.url).path) == hashed({"m.gguf": BODY}), "so that this test can fail"


ESCAPES = "\x1b[31mgz\x1b]0;owned\x07ip\x9b2J"


def says_it_plainly(result: Result) -> None:
    assert "gz" in result.stderr, "it is quoted"
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", result.stderr), ascii(result.stderr)


@pytest.mark.parametrize("options", [(), ("--log-format", "json")], ids=["plain", "json"])
def test_what_a_server_says_does_not_move_the_cursor(
    cli: Modelstore, http_server: HttpServer, options: tuple[str, ...]
) -> None:
    origin = http_server.add("/m.gguf", BODY, headers={"Content-Encoding": ESCAPES})
    result = replace(cli, options=(*options, *cli.options))("fetch", origin.url)
    assert result.returncode == 5, result
    says_it_plainly(result)


@pytest.mark.parametrize("options", [(), ("--log-format", "json")], ids=["plain", "json"])
def test_nor_does_a_warning_of_it(cli: Modelstore, http_server: HttpServer, options: tuple[str, ...]) -> None:
    """With --refresh the error is one, as the cached copy stands."""
    origin = http_server.add("/m.gguf", BODY)
    cli("fetch", origin.url).ok()
    origin.headers = {"Content-Encoding": ESCAPES}
    result = replace(cli, options=(*options, *cli.options))("fetch", "--refresh", origin.url).ok()
    says_it_plainly(result)


def test_nor_does_a_traceback_of_it(cli: Modelstore, http_server: HttpServer) -> None:
    origin = http_server.add("/m.gguf", BODY, headers={"Content-Encoding": ESCAPES})
    result = loud(cli)("fetch", origin.url)
    assert result.returncode == 5, result
    says_it_plainly(result)


def test_a_password_that_is_no_good_any_more(cli: Modelstore, http_server: HttpServer, tmp_path: Path) -> None:
    """What is old is asked about, and stands; whoever wants to know is told."""
    settings = tmp_path / "settings.toml"
    settings.write_text("max_age = 0\n")
    origin = http_server.add("/m.gguf", BODY)
    first = cli("--config", settings, "fetch", origin.url).path
    asked = len(http_server.requests)
    origin.status = 401
    result = cli("--config", settings, "fetch", origin.url)
    assert result.path == first
    assert "warning" in result.stderr
    assert "the cached copy stands" in result.stderr
    assert len(http_server.requests) > asked
    cli("--config", settings, "fetch", "--refresh", origin.url).failed(4)
    assert digests(first) == hashed({"m.gguf": BODY})


# -- hf ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["a.safetensors", "b.safetensors"])
@pytest.mark.parametrize("more", [-1, 1])
def test_one_digest_listed_in_two_sizes(hf: Modelstore, hub: Hub, store_root: Path, path: str, more: int) -> None:
    hub.repo("acme/twice", {"a.safetensors": BODY, "b.safetensors": BODY, "config.json": b"{}"})

    def lie(request: Request, answer: Answer) -> None:
        if "/tree/" in request.path:
            entries = json.loads(b"".join(answer.body.read(0, answer.body.size)))
            (entry,) = (entry for entry in entries if entry["path"] == path)
            entry["size"] = entry["lfs"]["size"] = len(BODY) + more
            answer.replace(200, json.dumps(entries).encode(), Content_Type="application/json")

    with scripted(hub, lie):
        hf("fetch", "hf://acme/twice").failed(7, "two sizes")
    assert not [line for line in hub.lines() if "/resolve/" in line], "nothing is asked for"
    assert visible(store_root) == {}
    assert hf("fetch", "hf://acme/twice").ok()


def test_a_repair_after_the_branch_has_moved(hf: Modelstore, hub: Hub, store_root: Path) -> None:
    """What is damaged is brought back as it was."""
    repo = hub.repo("acme/tiny", FILES)
    first = hf("fetch", "hf://acme/tiny").path
    repo.commit({"config.json": b"{ }", "model.safetensors": BODY[::-1]})
    for path, body in FILES.items():
        flip_byte(blob(store_root, sha256_of(body)), 1)
        hf("verify", "--repair", "hf://acme/tiny").ok()
        assert sha256_of(blob(store_root, sha256_of(body))) == sha256_of(body), path
    assert digests(first) == hashed(FILES)
    assert hf("fetch", "hf://acme/tiny").path == first


@pytest.mark.parametrize("token", ["hf_c4n\x01ary", "hf_c4n ary", "hf_c4n\N{SNOWMAN}ary"], ids=ascii)
def test_a_token_for_the_hub_that_no_header_can_hold(hf: Modelstore, hub: Hub, token: str) -> None:
    """The Hub's own package takes newlines out of it."""
    hub.repo("acme/tiny", FILES)
    result = loud(hf).with_env(HF_TOKEN=token)("fetch", "hf://acme/tiny")
    assert result.returncode == 2, result
    assert hub.log == []
    assert "c4n" not in result.stdout + result.stderr
    assert "ary" not in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("token", ["hf_c4n\nc4nary", "hf_c4n\r\nX-Injected: c4nary"], ids=ascii)
def test_a_token_for_hf_co_s_registry_that_no_header_can_hold(cli: Modelstore, token: str) -> None:
    """Nobody is asked; a proxy that nobody runs sees to it that it stays so."""
    command = loud(cli).with_env(HF_TOKEN=token, HTTPS_PROXY="http://127.0.0.1:1")
    result = command("fetch", "ollama://hf.co/acme/tiny")
    assert result.returncode == 2, result
    assert "HF_TOKEN" in result.stderr.splitlines()[-1]
    assert "c4n" not in result.stdout + result.stderr


@pytest.mark.parametrize("content", [None, b"hf_\xff\xfec4nary"], ids=["a directory", "not UTF-8"])
def test_a_token_file_that_cannot_be_read(hf: Modelstore, hub: Hub, tmp_path: Path, content: bytes | None) -> None:
    hub.repo("acme/tiny", FILES)
    path = tmp_path / "token"
    path.mkdir() if content is None else path.write_bytes(content)
    hf.with_env(HF_TOKEN_PATH=str(path))("fetch", "hf://acme/tiny").failed(2, "HF_TOKEN_PATH")
    result = loud(hf).with_env(HF_TOKEN_PATH=str(path))("fetch", "hf://acme/tiny")
    assert result.returncode == 2
    assert "c4n" not in result.stderr
    assert hub.log == []


# -- s3 ----------------------------------------------------------------------------------------------------------------


def test_a_listing_that_does_not_say_how_it_goes_on(aws: Modelstore, s3: S3, store_root: Path) -> None:
    """botocore takes such a page for the last: half a model would be a model."""
    s3.fill({"a": BODY, "b": BODY, "c": BODY}, "m/")
    s3.server.page = 2

    def cut(request: Request, answer: Answer) -> None:
        if kind(request) == "list":
            page = b"".join(answer.body.read(0, answer.body.size))
            page, count = re.subn(rb"<NextContinuationToken>.*?</NextContinuationToken>", b"", page)
            assert count == 1
            assert b"<IsTruncated>true<" in page
            answer.replace(200, page, Content_Type="application/xml")

    s3.server.script = cut
    aws("fetch", s3.url("m/")).failed(5, "cannot be listed to its end")
    assert visible(store_root) == {}
    s3.server.script = None
    assert set(digests(aws("fetch", s3.url("m/")).path)) == {"a", "b", "c"}
