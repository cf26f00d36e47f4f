"""`path`, `key`, `list`, `show`, `verify` and `remove`."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from tests.support import Modelstore, blob, digests, flip_byte, key_of, sha256_of, stats, visible
from tests.support.httpserver import HttpServer, PatternBody

CHUNK = 16 << 20
BODY = b"weights " * 5000

KEYS = {
    "https://huggingface.co/TheBloke/Llama-2-7B-GGUF/resolve/main/llama-2-7b.Q4_K_M.gguf": "abc28e40217b6b6f",
    "https://huggingface.co/unsloth/Qwen3-32B-GGUF/resolve/main/Qwen3-32B-Q4_K_M.gguf": "b305905cfb57fc0a",
    "https://huggingface.co/model.gguf": "6e66fd1e175fe9e9",
    "https://example.com/model.gguf": "8cc5f1f83d631cc0",
    "https://example.com/model-a.gguf": "bb66162e5bb0cacc",
    "https://huggingface.co/model-a.gguf": "060cf37f8030b10a",
    "https://huggingface.co/model-a.gguf?v=2": "085ffd2a8ec8ebba",
    "http://example.com/model.gguf": "b190de2caee4b0d3",
    "file:///mnt/models/model.gguf": "83ba4c8d6adc390b",
    "/mnt/models/model.gguf": "83ba4c8d6adc390b",
    "hf://meta-llama/meta-llama-3-8b-instruct": "c277d78a31bc6624",
    "hf://example/model": "b53e1639acdb4ca3",
    "s3://my-bucket/models/llama-3.1-8b-q4_k_m.gguf": "a0c58e684d0ca80f",
    "gs://bucket/model": "a4db08f99421c836",
}

AMZ = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AK&X-Amz-Date=20260101T000000Z&X-Amz-Expires=60"
GOOG = "X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential=c&X-Goog-Date=20260101T000000Z&X-Goog-SignedHeaders=host"
AZURE = "sv=2024-01-01&st=2026-01-01&se=2026-01-02&sr=b&sp=r"


# ---------------------------------------------------------------- key


@pytest.mark.parametrize(("source", "key"), KEYS.items())
def test_key(run_modelstore: Modelstore, source: str, key: str) -> None:
    assert run_modelstore("key", source).ok().stdout == f"{key}\n"


@pytest.mark.parametrize(
    ("source", "hashed"),
    [
        ("https://h.test/x#sha256=" + "0" * 64, "https://h.test/x"),
        ("https://user:secret@h.test/x", "https://h.test/x"),
        ("https://user@h.test/x", "https://h.test/x"),
        (f"https://h.test/x?{AMZ}&X-Amz-SignedHeaders=host&X-Amz-Signature=ab", "https://h.test/x"),
        (f"https://h.test/x?a=1&{AMZ}&versionId=3&X-Amz-Signature=ab&b=2", "https://h.test/x?a=1&versionId=3&b=2"),
        (f"https://h.test/x?{AMZ}", f"https://h.test/x?{AMZ}"),
        ("https://h.test/x?AWSAccessKeyId=AK&Signature=s&Expires=9&versionId=3", "https://h.test/x?versionId=3"),
        (f"https://h.test/x?{GOOG}&X-Goog-Signature=ab", "https://h.test/x"),
        (f"https://h.test/x?{AZURE}&sig=ab", "https://h.test/x"),
        ("https://h.test/x?sv=2024&se=9", "https://h.test/x?sv=2024&se=9"),
        ("https://h.test/x?Expires=9&Signature=s&Key-Pair-Id=K", "https://h.test/x"),
        ("https://h.test/x?Policy=p&Signature=s&Key-Pair-Id=K&v=1", "https://h.test/x?v=1"),
        ("https://H.test/a%2Fb/?q=%20&q=+", "https://H.test/a%2Fb/?q=%20&q=+"),
    ],
)
def test_key_hashes_the_url_as_written_less_its_secrets(run_modelstore: Modelstore, source: str, hashed: str) -> None:
    assert run_modelstore("key", source).ok().stdout == f"{key_of(hashed)[:16]}\n"
    assert run_modelstore("key", "--full", source).ok().stdout == f"{key_of(hashed)}\n"
    assert hashed in run_modelstore("key", "--explain", source).ok().stdout


def test_key_of_a_relative_path(run_modelstore: Modelstore, tmp_path: Path) -> None:
    assert run_modelstore("key", "./m.gguf", cwd=tmp_path).stdout.strip() == key_of(f"file://{tmp_path}/m.gguf")[:16]


# ---------------------------------------------------------------- path


def test_path(cli: Modelstore, tiny_model_dir: Path) -> None:
    cli("path", tiny_model_dir).failed(11)
    fetched = cli("fetch", tiny_model_dir).path
    assert cli("path", tiny_model_dir).path == fetched


def test_path_lays_out_what_is_cached_and_never_asks_the_origin(
    cli: Modelstore, http_server: HttpServer, tmp_path: Path, store_root: Path
) -> None:
    origin = http_server.add("/m.gguf", BODY)
    cli("path", origin.url).failed(11)
    assert http_server.requests == []
    cli("fetch", origin.url, "--to", tmp_path / "model").ok()
    asked = len(http_server.requests)
    found = cli("path", origin.url).path
    assert found == store_root / "models" / key_of(origin.url)[:16]
    assert digests(found) == {"m.gguf": origin.body.sha256}
    assert len(http_server.requests) == asked


def test_path_of_what_lost_a_blob(cli: Modelstore, tiny_model_dir: Path, store_root: Path) -> None:
    digest = cli("fetch", "--json", tiny_model_dir).json["files"][0]["digest"]
    blob(store_root, digest).unlink()
    shutil.rmtree(store_root / "models")
    cli("path", tiny_model_dir).failed(11)
    assert digests(cli("fetch", tiny_model_dir).path) == digests(tiny_model_dir)


# ---------------------------------------------------------------- list, show


def test_list(cli: Modelstore, http_server: HttpServer, sharded_model_dir: Path) -> None:
    assert cli("list", "--json").json == []
    assert "Traceback" not in cli("list").ok().stderr
    origin = http_server.add("/m.gguf", BODY)
    fetched = {
        found["key"]: found for found in (cli("fetch", "--json", s).json for s in (origin.url, sharded_model_dir))
    }
    listed = cli("list", "--json").json
    assert {entry["key"] for entry in listed} == fetched.keys()
    for entry in listed:
        found = fetched[entry["key"]]
        assert set(entry) >= {"key", "source", "manifest", "size", "files", "fetched"}
        assert (entry["source"], entry["manifest"]) == (found["source"], found["manifest"])
        assert entry["files"] == len(found["files"])
        assert entry["size"] == sum(file["size"] for file in found["files"])
        assert datetime.fromisoformat(entry["fetched"]).tzinfo is not None
    text = cli("list").ok().stdout
    assert all(key in text and found["source"] in text for key, found in fetched.items())


@pytest.mark.parametrize("by", ["source", "key"])
def test_show(cli: Modelstore, sharded_model_dir: Path, by: str) -> None:
    fetched = cli("fetch", "--json", sharded_model_dir).json
    shown = cli("show", "--json", sharded_model_dir if by == "source" else fetched["key"]).json
    assert set(shown) >= {"key", "source", "manifest", "size", "files", "fetched", "tier", "revision", "checked"}
    assert (shown["key"], shown["manifest"]) == (fetched["key"], fetched["manifest"])
    assert all(set(file) >= {"path", "size", "digest", "mediaType"} for file in shown["files"])
    assert {file["path"]: file["digest"] for file in shown["files"]} == {
        file["path"]: file["digest"] for file in fetched["files"]
    }
    types = {file["path"]: file["mediaType"] for file in shown["files"]}
    assert types["model-00001-of-00002.safetensors"] == "application/vnd.cncf.model.weight.v1.raw"
    assert types["config.json"] == "application/vnd.cncf.model.weight.config.v1.raw"
    text = cli("show", fetched["key"]).ok().stdout
    assert all(file["path"] in text for file in fetched["files"])


@pytest.mark.parametrize("what", ["0123456789abcdef", "https://h.test/never-fetched"])
@pytest.mark.parametrize("command", ["show", "verify", "remove"])
def test_unknown_model(cli: Modelstore, tiny_model_dir: Path, store_root: Path, command: str, what: str) -> None:
    cli("fetch", tiny_model_dir).ok()
    before = visible(store_root)
    cli(command, what).failed(11, what)
    assert visible(store_root) == before


# ---------------------------------------------------------------- verify


def test_verify_of_a_healthy_store_changes_nothing(cli: Modelstore, tiny_model_dir: Path, store_root: Path) -> None:
    found = cli("fetch", "--json", tiny_model_dir).json
    before = visible(store_root)
    report = cli("verify", "--json").json
    assert [(model["key"], model["source"], model["ok"]) for model in report["models"]] == [
        (found["key"], found["source"], True)
    ]
    assert report["checked"] >= len({file["digest"] for file in found["files"]})
    assert (report["corrupt"], report["repaired"]) == ([], [])
    assert visible(store_root) == before
    cli("verify").ok()


def test_verify_finds_and_quarantines_a_flipped_bit(cli: Modelstore, http_server: HttpServer, store_root: Path) -> None:
    """And nothing gives the wrong bytes out any more: neither `path` nor `fetch`."""
    origin = http_server.add("/m.gguf", PatternBody(CHUNK + 7))
    digest = f"sha256:{origin.body.sha256}"
    cli("fetch", origin.url).ok()
    flip_byte(blob(store_root, digest), CHUNK)
    result = cli("verify", "--json")
    assert result.returncode == 7, result
    report = json.loads(result.stdout)
    assert [model["ok"] for model in report["models"]] == [False]
    assert {corrupt["digest"] for corrupt in report["corrupt"]} == {digest}, "every entry says which bytes"
    assert report["repaired"] == []
    assert not blob(store_root, digest).exists()
    quarantined = [path for path in (store_root / ".modelstore" / "quarantine").rglob("*") if path.is_file()]
    assert [path.stat().st_size for path in quarantined] == [CHUNK + 7]
    cli("path", origin.url).failed(11)
    assert digests(cli("fetch", origin.url).path) == {"m.gguf": origin.body.sha256}
    cli("verify").ok()


@pytest.mark.parametrize("select", ["all", "source", "key"])
def test_repair(cli: Modelstore, http_server: HttpServer, store_root: Path, select: str, tiny_model_dir: Path) -> None:
    cli("fetch", tiny_model_dir).ok()
    origin = http_server.add("/m.gguf", PatternBody(CHUNK + 7))
    found = cli("fetch", "--json", origin.url).json
    digest = found["files"][0]["digest"]
    flip_byte(blob(store_root, digest), 0)
    arguments = {"all": [], "source": [origin.url], "key": [found["key"]]}[select]
    report = cli("verify", "--repair", "--json", *arguments).json
    assert len(report["models"]) == (2 if select == "all" else 1)
    assert digest in json.dumps(report["repaired"])
    assert sha256_of(blob(store_root, digest)) == origin.body.sha256
    assert digests(Path(found["path"])) == {"m.gguf": origin.body.sha256}, "the model is laid out again"
    assert cli("verify", "--json").json["corrupt"] == []


def test_repair_without_the_origin(cli: Modelstore, store_root: Path) -> None:
    with HttpServer() as server:
        origin = server.add("/m.gguf", BODY)
        cli("fetch", origin.url).ok()
    flip_byte(blob(store_root, origin.body.sha256), 0)
    result = cli("verify", "--repair")
    assert result.returncode == 7, result
    assert "Traceback" not in result.stderr
    assert not blob(store_root, origin.body.sha256).exists()
    cli("path", origin.url).failed(11)


def test_repair_does_not_take_other_bytes(cli: Modelstore, http_server: HttpServer, store_root: Path) -> None:
    origin = http_server.add("/m.gguf", BODY)
    cli("fetch", origin.url).ok()
    flip_byte(blob(store_root, origin.body.sha256), 0)
    http_server.add("/m.gguf", BODY[::-1])
    assert cli("verify", "--repair").returncode == 7
    assert not blob(store_root, origin.body.sha256).exists()


def test_verify_finds_a_missing_blob(cli: Modelstore, tiny_model_dir: Path, store_root: Path) -> None:
    digest = cli("fetch", "--json", tiny_model_dir).json["files"][0]["digest"]
    blob(store_root, digest).unlink()
    assert cli("verify").returncode in (7, 11)
    cli("verify", "--repair").ok()
    assert sha256_of(blob(store_root, digest)) == digest.removeprefix("sha256:")
    assert digests(cli("path", tiny_model_dir).path) == digests(tiny_model_dir)


def test_verify_looks_only_at_what_is_named(
    cli: Modelstore, http_server: HttpServer, store_root: Path, tiny_model_dir: Path
) -> None:
    origin = http_server.add("/m.gguf", BODY)
    cli("fetch", origin.url).ok()
    cli("fetch", tiny_model_dir).ok()
    flip_byte(blob(store_root, origin.body.sha256), 0)
    cli("verify", tiny_model_dir).ok()
    assert cli("verify", origin.url).returncode == 7


# ---------------------------------------------------------------- remove


@pytest.mark.parametrize("by", ["source", "key"])
def test_remove(cli: Modelstore, sharded_model_dir: Path, store_root: Path, by: str) -> None:
    found = cli("fetch", "--json", sharded_model_dir).json
    cli("remove", sharded_model_dir if by == "source" else found["key"]).ok()
    assert visible(store_root) == {}
    assert cli("list", "--json").json == []
    cli("path", sharded_model_dir).failed(11)
    assert digests(cli("fetch", sharded_model_dir).path) == digests(sharded_model_dir)


def test_remove_several(cli: Modelstore, tiny_model_dir: Path, sharded_model_dir: Path, store_root: Path) -> None:
    assert all(cli("fetch", source).path.is_dir() for source in (tiny_model_dir, sharded_model_dir))
    cli("remove", tiny_model_dir, sharded_model_dir).ok()
    assert visible(store_root) == {}


def test_remove_keeps_what_another_model_needs(
    cli: Modelstore, tiny_model_dir: Path, sharded_model_dir: Path, store_root: Path
) -> None:
    """Both have the same config and tokenizer."""
    kept = cli("fetch", "--json", tiny_model_dir).json
    cli("fetch", sharded_model_dir).ok()
    cli("remove", sharded_model_dir).ok()
    needed = {blob(store_root, digest) for digest in (kept["manifest"], *(f["digest"] for f in kept["files"]))}
    left = set((store_root / "blobs").iterdir())
    assert needed <= left
    assert len(left - needed) <= 1, "its config object, if it has one"
    assert digests(cli("path", tiny_model_dir).path) == digests(tiny_model_dir)
    cli("verify").ok()


def test_remove_keeps_what_an_ollama_manifest_needs(cli: Modelstore, http_server: HttpServer, store_root: Path) -> None:
    origin = http_server.add("/m.gguf", BODY)
    digest = cli("fetch", "--json", origin.url).json["files"][0]["digest"]
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": len(BODY)}
    named = store_root / "manifests" / "registry.ollama.ai" / "library" / "demo" / "latest"
    named.parent.mkdir(parents=True)
    named.write_text(json.dumps({"schemaVersion": 2, "layers": [layer]}))
    cli("remove", origin.url).ok()
    assert sha256_of(blob(store_root, digest)) == origin.body.sha256
    assert named.is_file()
    cli("path", origin.url).failed(11)


def test_remove_leaves_other_directories_alone(cli: Modelstore, tiny_model_dir: Path, tmp_path: Path) -> None:
    cli("fetch", tiny_model_dir, "--to", tmp_path / "elsewhere").ok()
    before = digests(tiny_model_dir)
    cli("remove", tiny_model_dir).ok()
    assert digests(tmp_path / "elsewhere") == digests(tiny_model_dir) == before


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("command", ["", "fetch", "path", "key", "list", "show", "verify", "remove"])
def test_help_has_an_example(run_modelstore: Modelstore, command: str) -> None:
    _, _, examples = run_modelstore(*command.split(), "--help").ok().stdout.partition("Example")
    assert re.search(rf"modelstore .*{command}", examples)


def test_as_a_module(cli: Modelstore, tiny_model_dir: Path) -> None:
    module = replace(cli, command=(sys.executable, "-m", "modelstore"))
    assert module("fetch", tiny_model_dir).path == cli("path", tiny_model_dir).path


def test_warm_commands_write_nothing(cli: Modelstore, tiny_model_dir: Path, store_root: Path) -> None:
    key = cli("fetch", "--json", tiny_model_dir).json["key"]
    before = stats(store_root)
    for command in (("path", str(tiny_model_dir)), ("key", str(tiny_model_dir)), ("list",), ("show", key)):
        cli(*command).ok()
    assert stats(store_root) == before
