"""What a file from the web is called: as the server says if that is a plain name, and never a way out."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.support import Modelstore, digests, key_of, sha256_of, staged, tree, visible
from tests.support.httpserver import HttpServer, PatternBody

if TYPE_CHECKING:
    from pathlib import Path

BODY = b"weights " * 5000
SHA = sha256_of(BODY)

PLAIN = {
    "attachment; filename=model.gguf": "model.gguf",
    'attachment; filename="model.gguf"': "model.gguf",
    'ATTACHMENT; FileName="model.gguf"': "model.gguf",
    'inline; filename="model.gguf"': "model.gguf",
    'attachment; filename="my model; v2.gguf"': "my model; v2.gguf",
    r'attachment; filename="a \"b\" c.gguf"': 'a "b" c.gguf',
    'attachment;filename="model.gguf";': "model.gguf",
    'attachment; size=7; filename="model.gguf"; creation-date="today"': "model.gguf",
    "attachment; filename*=UTF-8''model.gguf": "model.gguf",
    "attachment; filename*=utf-8'en'model.gguf": "model.gguf",
    "attachment; filename*=UTF-8''m%C3%B6del%20one.gguf": "m\u00f6del one.gguf",
    "attachment; filename=\"plain.gguf\"; filename*=UTF-8''m%C3%B6del.gguf": "m\u00f6del.gguf",
    "attachment; filename*=UTF-8''m%C3%B6del.gguf; filename=\"plain.gguf\"": "m\u00f6del.gguf",
}
#: The server says nothing about the name: that of the URL counts.
SILENT = ["attachment", "inline", "attachment; size=7", 'attachment; name="other.gguf"']
GARBAGE = ["\u00e9", ";;;", 'attachment; filename="not closed', "filename=x", "=;=;=", r'attachment; filename="C:\x"']
ESCAPES = {
    "parent": 'attachment; filename="../x"',
    "two parents": 'attachment; filename="../../escaped"',
    "folder": 'attachment; filename="a/b"',
    "absolute": 'attachment; filename="/etc/x"',
    "drive": 'attachment; filename="C:\\\\x"',
    "dots": 'attachment; filename=".."',
    "dot": 'attachment; filename="."',
    "empty": 'attachment; filename=""',
    "tab": 'attachment; filename="a\tb"',
    "delete": 'attachment; filename="a\x7fb"',
    "escaped parent": "attachment; filename*=UTF-8''..%2Fx",
    "escaped folder": "attachment; filename*=UTF-8''a%2Fb",
    "escaped backslash": "attachment; filename*=UTF-8''..%5Cx",
    "escaped NUL": "attachment; filename*=UTF-8''a%00b",
    "escaped newline": "attachment; filename*=UTF-8''a%0Ab",
    "escaped terminal codes": "attachment; filename*=UTF-8''a%1B%5B2Jb",
    "overlong": f'attachment; filename="{"x" * 300}"',
    "overlong in bytes": "attachment; filename*=UTF-8''" + "%C3%B6" * 150,
    "the wrong one of two": "attachment; filename=\"good.gguf\"; filename*=UTF-8''..%2Fx",
}


def origin_of(server: HttpServer, disposition: str, path: str = "/dir/url-name.bin") -> str:
    return server.add(path, BODY, headers={"Content-Disposition": disposition}).url


@pytest.mark.parametrize(("disposition", "name"), PLAIN.items(), ids=[text[:50] for text in PLAIN])
def test_a_plain_name_is_used(
    cli: Modelstore, http_server: HttpServer, store_root: Path, disposition: str, name: str
) -> None:
    url = origin_of(http_server, disposition)
    result = cli("fetch", url)
    assert result.path == store_root / "models" / key_of(url)[:16]
    assert digests(result.path) == {name: SHA}


@pytest.mark.parametrize("disposition", SILENT)
def test_without_a_name_that_of_the_url_counts(cli: Modelstore, http_server: HttpServer, disposition: str) -> None:
    assert digests(cli("fetch", origin_of(http_server, disposition)).path) == {"url-name.bin": SHA}


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "one-stream"])
@pytest.mark.parametrize("escape", ESCAPES)
def test_another_name_is_refused_and_nothing_is_written(
    cli: Modelstore, http_server: HttpServer, store_root: Path, tmp_path: Path, escape: str, ranges: bool
) -> None:
    url = origin_of(http_server, ESCAPES[escape])
    http_server.resources["/dir/url-name.bin"].ranges = ranges
    before = {name: what for name, what in tree(tmp_path).items() if not name.startswith(("store", "home"))}
    result = cli("fetch", url).failed(7)
    assert visible(store_root) == {}
    assert staged(store_root) == []
    after = {name: what for name, what in tree(tmp_path).items() if not name.startswith(("store", "home"))}
    assert after == before
    assert result.stderr.isprintable() or all(line.isprintable() for line in result.stderr.splitlines())


@pytest.mark.parametrize("disposition", GARBAGE)
def test_garbage_is_a_name_of_one_part_or_a_typed_error(
    cli: Modelstore, http_server: HttpServer, store_root: Path, disposition: str
) -> None:
    result = cli("fetch", origin_of(http_server, disposition))
    if result.returncode == 0:
        assert len(os.listdir(result.path)) == 1
    else:
        result.failed(7)
        assert visible(store_root) == {}


def test_the_name_is_remembered(cli: Modelstore, http_server: HttpServer, store_root: Path) -> None:
    """A warm hit asks nobody, so it cannot ask for the name."""
    url = origin_of(http_server, 'attachment; filename="given.gguf"')
    first = cli("fetch", "--json", url).json
    asked = len(http_server.requests)
    again = cli("fetch", "--json", url).json
    offline = cli("fetch", "--offline", "--json", url).json
    assert len(http_server.requests) == asked
    assert first["files"] == again["files"] == offline["files"]
    assert first["files"] == [{"path": "given.gguf", "size": len(BODY), "digest": f"sha256:{SHA}"}]
    assert first["path"] == again["path"] == offline["path"]
    assert first["manifest"] == again["manifest"] == offline["manifest"]


def test_an_interrupted_one_keeps_its_name(cli: Modelstore, http_server: HttpServer) -> None:
    body = PatternBody((16 << 20) + 5)
    headers = {"Content-Disposition": 'attachment; filename="given.gguf"'}
    origin = http_server.add("/m.bin", body, headers=headers, cut_at=1000, cut_times=2)
    assert digests(cli("fetch", origin.url).path) == {"given.gguf": body.sha256}


@pytest.mark.parametrize("path", ["/", "/download/", "/api/v1/?id=7"])
def test_a_url_without_a_name_gets_it_from_the_server(cli: Modelstore, http_server: HttpServer, path: str) -> None:
    origin_of(http_server, 'attachment; filename="given.gguf"', path.partition("?")[0])
    assert digests(cli("fetch", http_server.url + path).path) == {"given.gguf": SHA}


@pytest.mark.parametrize("path", ["/", "/download/", "/api/v1/?id=7", ""])
def test_no_name_at_all_is_the_callers_error(
    cli: Modelstore, http_server: HttpServer, store_root: Path, path: str
) -> None:
    http_server.add(path.partition("?")[0] or "/", BODY)
    cli("fetch", http_server.url + path).failed(2, "name")
    assert visible(store_root) == {}


def test_the_name_is_that_of_the_answer_and_not_of_the_redirect(cli: Modelstore, http_server: HttpServer) -> None:
    target = http_server.add("/x/9f3c", BODY, headers={"Content-Disposition": 'attachment; filename="good.gguf"'})
    wrong = {"Content-Disposition": 'attachment; filename="../../wrong"'}
    origin = http_server.add("/m.gguf", redirect=target.url, headers=wrong)
    assert digests(cli("fetch", origin.url).path) == {"good.gguf": SHA}


def test_a_redirect_does_not_rename(cli: Modelstore, http_server: HttpServer) -> None:
    """The last part of the URL that was asked for: a content-addressed place has names of its own."""
    target = http_server.add("/x/9f3c", BODY)
    origin = http_server.add("/m.gguf", redirect=target.url)
    assert digests(cli("fetch", origin.url).path) == {"m.gguf": SHA}


def test_an_error_shows_the_name_as_text(cli: Modelstore, http_server: HttpServer) -> None:
    """Terminal codes in a name must not reach a terminal."""
    url = origin_of(http_server, "attachment; filename*=UTF-8''a%1B%5B2J%0Amodelstore%3A%20error%3A%20b")
    for options in ((), ("-v",)):
        said = Modelstore(cli.home, (*cli.options, *options))("fetch", url).stderr
        assert "\x1b" not in said
        assert sum(line.startswith("modelstore: error: ") for line in said.splitlines()) == 1


def test_json_has_the_given_name(cli: Modelstore, http_server: HttpServer) -> None:
    url = origin_of(http_server, "attachment; filename*=UTF-8''m%C3%B6del.gguf")
    cli("fetch", url).ok()
    shown = cli("show", "--json", url)
    assert "m\u00f6del.gguf" in json.dumps(shown.json, ensure_ascii=False)
