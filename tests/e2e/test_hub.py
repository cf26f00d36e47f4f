"""`modelstore fetch hf://…` on a healthy Hub: what the real client gets, by few requests, and by none when warm."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support import Modelstore, Result, blob, digests, key_of, sha256_of, staged, stats, tree, visible, writable
from tests.support.httpserver import PatternBody
from tests.support.hub import Hub, scripted
from tests.support.hub_client import RealClient

CHUNK = 16 << 20
WEIGHTS = PatternBody(3_000_001)
FILES: dict[str, Any] = {
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "empty.txt": b"",
    "tokenizer.model": b"",  # empty, and an LFS file
    "same.json": b'{"model_type": "llama"}',
    "sub/same.model": WEIGHTS,
    "sub/config.json": b"[1]",
    "sub/deep/\N{LATIN SMALL LETTER U WITH DIAERESIS} a+b%&#?.txt": b"odd name",
    "sub2/other.txt": b"not below sub",
}


def sums(files: dict[str, Any]) -> dict[str, str]:
    return {path: sha256_of(body) if isinstance(body, bytes) else body.sha256 for path, body in files.items()}


def contents(directory: Path) -> dict[str, bytes]:
    return {path: (directory / path).read_bytes() for path in digests(directory)}


def ref(root: Path, url: str) -> Any:
    return json.loads((root / ".modelstore" / "refs" / f"{key_of(url)}.json").read_text())


def assert_model(root: Path, result: Result, url: str, files: dict[str, str]) -> None:
    assert result.path == root / "models" / key_of(url)[:16], result
    assert digests(result.path) == files
    assert staged(root) == []


# ---------------------------------------------------------------- the same as the real client


@pytest.mark.parametrize(
    "options",
    [{}, {"page_size": 2}, {"resolve_cache": True}, {"prefix": "/api/mirror/hf"}, {"inline": True}],
    ids=str,
)
@pytest.mark.parametrize("xet", [False, True], ids=["", "xet"])
def test_the_tree_that_the_real_client_gets(
    cli: Modelstore, store_root: Path, tmp_path: Path, options: dict[str, Any], xet: bool
) -> None:
    with Hub(**options) as hub:
        commit = hub.repo("acme/tiny", FILES, xet=xet).refs["main"]
        theirs = RealClient(hub.endpoint, tmp_path / "real").snapshot("acme/tiny")
        hub.forget()
        result = cli.with_env(HF_ENDPOINT=hub.endpoint)("fetch", "hf://acme/tiny")
        assert_model(store_root, result, "hf://acme/tiny", digests(theirs))
        assert digests(theirs) == sums(FILES)
        assert ref(store_root, "hf://acme/tiny")["revision"] == commit
        assert not any("xet" in line for line in hub.lines())


def test_a_model_in_shards_for_vllm(
    hf: Modelstore, hub: Hub, real_client: RealClient, sharded_model_dir: Path, tmp_path: Path
) -> None:
    hub.repo("acme/sharded", contents(sharded_model_dir))
    target = hf("fetch", "hf://acme/sharded", "--layout", "vllm", "--to", tmp_path / "model").path
    assert digests(target) == digests(real_client.snapshot("acme/sharded")) == digests(sharded_model_dir)


def test_the_same_manifest_as_from_a_directory(hf: Modelstore, hub: Hub, tiny_model_dir: Path) -> None:
    hub.repo("acme/tiny", contents(tiny_model_dir))
    found = hf("fetch", "--json", "hf://acme/tiny").json
    assert found["manifest"] == hf("fetch", "--json", tiny_model_dir).json["manifest"]
    assert (found["source"], found["key"]) == ("hf://acme/tiny", key_of("hf://acme/tiny")[:16])
    assert found["bytes"]["origin"] == sum(len(body) for body in contents(tiny_model_dir).values())


@pytest.mark.parametrize(
    "path", ["config.json", "model.safetensors", "sub/config.json", "empty.txt", "tokenizer.model"]
)
def test_one_file(hf: Modelstore, hub: Hub, store_root: Path, path: str) -> None:
    hub.repo("acme/tiny", FILES)
    url = f"hf://acme/tiny/{path}"
    assert_model(store_root, hf("fetch", url), url, {path.rpartition("/")[2]: sums(FILES)[path]})


@pytest.mark.parametrize("path", ["sub", "sub/", "sub/deep"])
def test_a_folder(hf: Modelstore, hub: Hub, store_root: Path, path: str) -> None:
    hub.repo("acme/tiny", FILES)
    url, prefix = f"hf://acme/tiny/{path}", path.rstrip("/") + "/"
    below = {name.removeprefix(prefix): digest for name, digest in sums(FILES).items() if name.startswith(prefix)}
    assert_model(store_root, hf("fetch", url), url, below)


@pytest.mark.parametrize("query", ["allow=*.json", "allow=*.json,*.txt&ignore=sub/*", "ignore=sub/,*.json", "allow=*"])
def test_selections_are_those_of_the_real_client(
    hf: Modelstore, hub: Hub, real_client: RealClient, store_root: Path, query: str
) -> None:
    hub.repo("acme/tiny", FILES)
    given = dict(part.split("=") for part in query.split("&"))
    arguments = {f"{name}_patterns": value.split(",") for name, value in given.items()}
    theirs = digests(real_client.snapshot("acme/tiny", **arguments))
    assert theirs
    assert_model(store_root, hf("fetch", f"hf://acme/tiny?{query}"), f"hf://acme/tiny?{query}", theirs)


def test_a_selection_of_nothing(hf: Modelstore, hub: Hub, store_root: Path) -> None:
    hub.repo("acme/tiny", FILES)
    result = hf("fetch", "hf://acme/tiny?allow=*.nope")
    result.failed(result.returncode)
    assert result.returncode in (2, 3), result
    assert visible(store_root) == {}


# ---------------------------------------------------------------- revisions


@pytest.fixture
def revisions(hub: Hub) -> dict[str, str]:
    """A repository whose config.json holds its revision's name; the commits by these names."""
    repo = hub.repo("acme/tiny")
    names = ("main", "dev", "v1.0", "refs/pr/1", "feature/x")
    body = {"config.json": b"", "sub/config.json": b""}
    return {name: repo.commit(dict.fromkeys(body, name.encode()), branch=name) for name in names}


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("@main", "main"),
        ("@dev", "dev"),
        (":dev", "dev"),
        ("@v1.0", "v1.0"),
        ("@refs/pr/1", "refs/pr/1"),
        (":refs/pr/1", "refs/pr/1"),
        ("@refs%2Fpr%2F1", "refs/pr/1"),
        ("@feature%2Fx", "feature/x"),
    ],
)
@pytest.mark.parametrize("path", ["", "/config.json", "/sub/config.json"])
def test_revisions(
    hf: Modelstore, store_root: Path, revisions: dict[str, str], written: str, name: str, path: str
) -> None:
    url = f"hf://acme/tiny{written}{path}"
    target = hf("fetch", url).path
    assert (target / "config.json").read_text() == name
    assert ref(store_root, url)["revision"] == revisions[name]
    assert len(digests(target)) == (1 if path else 2)


@pytest.mark.parametrize("sign", ["@", ":"])
def test_a_commit_stays_what_it_is(hf: Modelstore, hub: Hub, revisions: dict[str, str], sign: str) -> None:
    url = f"hf://acme/tiny{sign}{revisions['main']}"
    hub.repos["acme/tiny"].commit({"config.json": b"newer"})
    assert (hf("fetch", url).path / "config.json").read_text() == "main"
    assert (hf("fetch", "--refresh", url).path / "config.json").read_text() == "main"


def test_a_name_without_an_owner(hf: Modelstore, hub: Hub, store_root: Path) -> None:
    hub.repo("gpt2", {"config.json": b"{}"}).commit({"config.json": b"[]"}, branch="dev")
    assert_model(store_root, hf("fetch", "hf://gpt2"), "hf://gpt2", {"config.json": sha256_of(b"{}")})
    assert_model(store_root, hf("fetch", "hf://gpt2@dev"), "hf://gpt2@dev", {"config.json": sha256_of(b"[]")})


def test_a_repository_that_was_renamed(hf: Modelstore, hub: Hub, store_root: Path) -> None:
    """The Hub sends from the old name to the new one, on the same host, so the token goes along."""
    hub.repo("openai-community/gpt2", FILES, private=True, readers={"reader"})
    hub.moved["gpt2"] = "openai-community/gpt2"
    assert_model(store_root, hf.with_env(HF_TOKEN="reader")("fetch", "hf://gpt2"), "hf://gpt2", sums(FILES))


@pytest.mark.parametrize(
    "url",
    [
        "hf://datasets/acme/data",
        "hf://spaces/acme/app",
        "hf://acme/tiny@",
        "hf://acme//tiny",
        "hf://acme/../tiny",
        "hf://acme/tiny/../../other",
        "hf:///acme/tiny",
        "hf://acme/tiny?unknown=1",
        "hf://acme/ti ny",
    ],
)
def test_what_names_no_model(hf: Modelstore, hub: Hub, url: str) -> None:
    hf("fetch", url).failed(2)
    assert hub.log == []


# ---------------------------------------------------------------- requests


def test_one_request_for_the_revision_and_one_for_each_page(cli: Modelstore) -> None:
    files = {f"layers/{number:02}.json": b"%d" % number for number in range(60)}
    with Hub(page_size=25) as hub:
        commit = hub.repo("acme/many", files).refs["main"]
        assert digests(cli.with_env(HF_ENDPOINT=hub.endpoint)("fetch", "hf://acme/many").path) == sums(files)
        asked = [line.partition("?")[0] for line in hub.api()]
        revision, *pages = asked
        assert revision == "GET /api/models/acme/many/revision/main"
        assert pages == [f"GET /api/models/acme/many/tree/{commit}"] * 3
        reads = [line for line in hub.lines() if "/resolve/" in line]
        assert sorted(reads) == sorted(f"GET /acme/many/resolve/{commit}/{path}" for path in files)
        assert len(hub.log) == 1 + 3 + 60


def test_ranges_of_a_large_file(hf: Modelstore, hub: Hub, store_root: Path) -> None:
    large = PatternBody(3 * CHUNK + 12345)
    commit = hub.repo("acme/large", {"model.safetensors": large}).refs["main"]
    result = hf("fetch", "hf://acme/large")
    assert_model(store_root, result, "hf://acme/large", {"model.safetensors": large.sha256})
    assert len(hub.api()) == 2
    resolved = {line for line in hub.lines() if "/resolve/" in line}
    assert resolved == {f"GET /acme/large/resolve/{commit}/model.safetensors"}
    assert {request.method for request in (*hub.log, *hub.cdn.log)} == {"GET"}
    assert {request.status for request in hub.cdn.log} == {206}
    assert hub.cdn.bytes_sent() <= large.size + 4096
    assert {request.headers["accept-encoding"] for request in hub.cdn.log} == {"identity"}


@pytest.mark.parametrize("url", ["hf://acme/tiny", "hf://acme/tiny@dev", "hf://acme/tiny/config.json"])
def test_a_warm_hit_asks_for_nothing(hf: Modelstore, hub: Hub, url: str) -> None:
    hub.repo("acme/tiny", FILES).commit(FILES, branch="dev")
    first = hf("fetch", url).path
    asked, before = len(hub.log) + len(hub.cdn.log), stats(first)
    hub.repos["acme/tiny"].commit({"config.json": b"newer"})
    assert hf("fetch", url).path == first
    assert hf("path", url).path == first
    assert stats(first) == before
    assert len(hub.log) + len(hub.cdn.log) == asked


# ---------------------------------------------------------------- what the Hub had before


def test_refresh_brings_what_is_new(hf: Modelstore, hub: Hub, store_root: Path) -> None:
    repo = hub.repo("acme/tiny", FILES)
    hf("fetch", "hf://acme/tiny").ok()
    newer = {**FILES, "config.json": b'{"model_type": "qwen3"}', "added.txt": b"added"}
    commit = repo.commit({path: body for path, body in newer.items() if path != "sub2/other.txt"})
    del newer["sub2/other.txt"]
    hub.cdn.forget()
    found = hf("fetch", "--refresh", "--json", "hf://acme/tiny").json
    assert digests(Path(found["path"])) == sums(newer)
    assert found["bytes"]["origin"] == len(newer["config.json"]) + len(newer["added.txt"])
    assert hub.cdn.log == [], "the weights are the same"
    assert ref(store_root, "hf://acme/tiny")["revision"] == commit


def test_refresh_of_what_did_not_change(hf: Modelstore, hub: Hub) -> None:
    hub.repo("acme/tiny", FILES)
    first = hf("fetch", "hf://acme/tiny").path
    before = stats(first)
    hub.forget()
    found = hf("fetch", "--refresh", "--json", "hf://acme/tiny").json
    assert (found["path"], found["bytes"]["origin"]) == (str(first), 0)
    assert stats(first) == before
    assert len(hub.api()) == len(hub.log) <= 2


def lose(root: Path, digest: str) -> None:
    with writable(root / "blobs"):
        blob(root, digest).unlink()
    for path in (root / "models").rglob("*.safetensors"):
        path.unlink()


def test_a_lost_blob_is_fetched_again(hf: Modelstore, hub: Hub, store_root: Path) -> None:
    hub.repo("acme/tiny", FILES)
    hf("fetch", "hf://acme/tiny").ok()
    lose(store_root, WEIGHTS.sha256)
    found = hf("fetch", "--json", "hf://acme/tiny").json
    assert digests(Path(found["path"])) == sums(FILES)
    assert found["bytes"]["origin"] == WEIGHTS.size


def test_a_lost_blob_of_a_branch_that_moved(hf: Modelstore, hub: Hub, store_root: Path) -> None:
    repo = hub.repo("acme/tiny", FILES)
    hf("fetch", "hf://acme/tiny").ok()
    lose(store_root, WEIGHTS.sha256)
    before = visible(store_root)
    newer = {**FILES, "model.safetensors": PatternBody(WEIGHTS.size, seed=1)}
    repo.commit(newer)
    hf("fetch", "hf://acme/tiny").failed(6, "--refresh")
    assert {name: what for name, what in visible(store_root).items() if name.startswith(".modelstore/refs")} == {
        name: what for name, what in before.items() if name.startswith(".modelstore/refs")
    }
    assert digests(hf("fetch", "--refresh", "hf://acme/tiny").path) == sums(newer)


def test_a_branch_that_moves_while_it_is_listed(cli: Modelstore) -> None:
    """The revision is pinned first: what comes is one commit, whole."""
    with Hub(page_size=2) as hub:
        repo = hub.repo("acme/tiny", FILES)
        newer = dict.fromkeys(FILES, b"newer")
        with scripted(hub, lambda *_: repo.commit(newer) and None):
            result = cli.with_env(HF_ENDPOINT=hub.endpoint)("fetch", "hf://acme/tiny")
        assert digests(result.path) == sums(FILES)


# ---------------------------------------------------------------- pins


@pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
def test_pins_of_a_file(hf: Modelstore, hub: Hub, store_root: Path, path: str) -> None:
    hub.repo("acme/tiny", FILES)
    url, digest = f"hf://acme/tiny/{path}", sums(FILES)[path]
    hf("fetch", f"{url}#sha256={'0' * 64}").failed(7)
    assert visible(store_root) == {}
    assert_model(store_root, hf("fetch", f"{url}#sha256={digest}"), url, {path: digest})


def test_pins_of_a_tree(hf: Modelstore, hub: Hub, tmp_path: Path, store_root: Path) -> None:
    hub.repo("acme/tiny", FILES)
    hf("fetch", f"hf://acme/tiny#sha256={'0' * 64}").failed(7)
    assert [name for name in visible(store_root) if not name.startswith("blobs/")] == []
    manifest = hf("fetch", "--json", "hf://acme/tiny").json["manifest"]
    other = hf.at(tmp_path / "other")
    assert digests(other("fetch", f"hf://acme/tiny#{manifest.replace(':', '=')}").path) == sums(FILES)
    hub.repos["acme/tiny"].commit({**FILES, "config.json": b"moved"})
    third = hf.at(tmp_path / "third")
    third("fetch", f"hf://acme/tiny#{manifest.replace(':', '=')}").failed(7)


def test_a_file_too_large_for_the_disk_is_refused_before_a_byte(hf: Modelstore, hub: Hub, store_root: Path) -> None:
    hub.repo("acme/huge", {"config.json": b"{}", "model.safetensors": Huge()})
    hf("fetch", "hf://acme/huge").failed(10)
    assert not any(re.search(r"/resolve/", line) for line in hub.lines())
    assert tree(store_root / "models") == {} if (store_root / "models").exists() else True


class Huge:
    """A petabyte that nobody will read."""

    size = 1 << 50
    sha256 = "ab" * 32
    tag = "huge"
