"""A warm hit makes no request and no write; offline, what is cached is given and nothing else is looked at."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.support import Modelstore, blob, digests, stats, visible
from tests.support.httpserver import HttpServer, PatternBody

if TYPE_CHECKING:
    from pathlib import Path

SIZE = (1 << 24) + 99
OFFLINE = [
    pytest.param({}, ("--offline",), id="option"),
    pytest.param({"MODELSTORE_OFFLINE": "1"}, (), id="variable"),
    pytest.param({"MODELSTORE_OFFLINE": "true"}, (), id="variable-true"),
]


@pytest.mark.parametrize("layout", ["files", "vllm"])
def test_warm_fetch_of_a_directory_writes_nothing(
    cli: Modelstore, sharded_model_dir: Path, store_root: Path, layout: str
) -> None:
    command = ("fetch", sharded_model_dir, "--layout", layout)
    first = cli(*command).path
    before = stats(store_root), stats(sharded_model_dir)
    assert [cli(*command).path for _ in range(3)] == [first] * 3
    assert (stats(store_root), stats(sharded_model_dir)) == before


def test_warm_fetch_asks_nobody_and_writes_nothing(cli: Modelstore, http_server: HttpServer, store_root: Path) -> None:
    origin = http_server.add("/m.gguf", PatternBody(SIZE))
    first = cli("fetch", origin.url).path
    asked, before = len(http_server.requests), stats(store_root)
    assert cli("fetch", origin.url).path == first
    assert cli("path", origin.url).path == first
    assert cli("list", "--json").json[0]["source"] == origin.url
    assert cli("show", "--json", origin.url).json["files"][0]["size"] == SIZE
    assert len(http_server.requests) == asked
    assert stats(store_root) == before


def test_warm_fetch_when_the_origin_is_gone(cli: Modelstore) -> None:
    with HttpServer() as server:
        origin = server.add("/m.gguf", PatternBody(SIZE))
        first = cli("fetch", origin.url).path
    assert cli("fetch", origin.url).path == first
    assert digests(first) == {"m.gguf": origin.body.sha256}


def test_warm_fetch_when_the_source_directory_is_gone(cli: Modelstore, tiny_model_dir: Path, tmp_path: Path) -> None:
    first, expected = cli("fetch", tiny_model_dir).path, digests(tiny_model_dir)
    tiny_model_dir.rename(tmp_path / "moved")
    assert cli("fetch", tiny_model_dir).path == first
    assert digests(first) == expected


def test_warm_blobs_to_a_new_target_need_no_network(cli: Modelstore, http_server: HttpServer, tmp_path: Path) -> None:
    origin = http_server.add("/m.gguf", PatternBody(SIZE))
    cli("fetch", origin.url).ok()
    asked = len(http_server.requests)
    found = cli("fetch", origin.url, "--to", tmp_path / "serve", "--json").json
    assert digests(tmp_path / "serve") == {"m.gguf": origin.body.sha256}
    assert found["bytes"]["origin"] == 0
    assert len(http_server.requests) == asked


@pytest.mark.parametrize(("env", "options"), OFFLINE)
@pytest.mark.parametrize("kind", ["http", "directory", "bare path"])
def test_offline_and_not_cached(
    cli: Modelstore, http_server: HttpServer, tiny_model_dir: Path, store_root: Path, tmp_path: Path,
    env: dict[str, str], options: tuple[str, ...], kind: str,
) -> None:  # fmt: skip
    """Offline applies to every source."""
    origin = http_server.add("/m.gguf", PatternBody(SIZE))
    source = {"http": origin.url, "directory": f"file://{tiny_model_dir}", "bare path": str(tiny_model_dir)}[kind]
    cli.with_env(**env)("fetch", *options, source, "--to", tmp_path / "serve").failed(11)
    assert http_server.requests == []
    assert visible(store_root) == {}
    assert not (tmp_path / "serve").exists()


@pytest.mark.parametrize(("env", "options"), OFFLINE)
def test_offline_and_cached(
    cli: Modelstore, http_server: HttpServer, env: dict[str, str], options: tuple[str, ...]
) -> None:
    origin = http_server.add("/m.gguf", PatternBody(SIZE))
    first = cli("fetch", origin.url).path
    asked = len(http_server.requests)
    assert cli.with_env(**env)("fetch", *options, origin.url).path == first
    assert len(http_server.requests) == asked


@pytest.mark.parametrize("value", ["0", "false", ""])
def test_offline_can_be_switched_off(cli: Modelstore, tiny_model_dir: Path, value: str) -> None:
    assert cli.with_env(MODELSTORE_OFFLINE=value)("fetch", tiny_model_dir).path.is_dir()


def test_offline_and_incomplete(cli: Modelstore, http_server: HttpServer, store_root: Path) -> None:
    origin = http_server.add("/m.gguf", PatternBody(SIZE))
    cli("fetch", origin.url).ok()
    asked = len(http_server.requests)
    blob(store_root, origin.body.sha256).unlink()
    shutil.rmtree(store_root / "models")
    cli("fetch", "--offline", origin.url).failed(11)
    assert len(http_server.requests) == asked
