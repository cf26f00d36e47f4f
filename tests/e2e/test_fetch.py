"""`modelstore fetch`: every source, target and layout of a healthy run, and origins that are slow to behave."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from safetensors import safe_open

from tests.support import Modelstore, Result, blob, digests, key_of, sha256_of, staged, stats, tree, visible
from tests.support.httpserver import PIECE, TLS_CERT, BytesBody, HttpServer, PatternBody

CHUNK = 16 << 20
BODY = b"weights " * 5000


def assert_model(root: Path, result: Result, url: str, files: dict[str, str]) -> Path:
    """`result` is the model at the default target, with exactly `files`, and no trace of how it came."""
    assert result.path == root / "models" / key_of(url)[:16], result
    assert digests(result.path) == files
    assert staged(root) == []
    return result.path


# ---------------------------------------------------------------- http


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "one-stream"])
@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 12345])
def test_http_file_of_any_size(
    cli: Modelstore, http_server: HttpServer, store_root: Path, size: int, ranges: bool
) -> None:
    origin = http_server.add("/org/model.gguf", PatternBody(size), ranges=ranges)
    result = cli("fetch", origin.url)
    assert_model(store_root, result, origin.url, {"model.gguf": origin.body.sha256})
    assert sha256_of(blob(store_root, origin.body.sha256)) == origin.body.sha256
    if ranges:
        assert http_server.bytes_sent <= size + 4096, "one copy, plus a probe"


def test_every_range_carries_the_validator_and_asks_for_identity(cli: Modelstore, http_server: HttpServer) -> None:
    origin = http_server.add("/m.bin", PatternBody(3 * CHUNK))
    cli("fetch", origin.url).ok()
    ranged = [request for request in http_server.requests if request.method == "GET" and request.body_bytes > 1]
    assert len(ranged) >= 3
    assert {request.status for request in ranged} == {206}
    assert all(request.headers["accept-encoding"] == "identity" for request in http_server.requests)
    etag = f'"{origin.body.tag}"'
    unguarded = [r for r in ranged if etag not in (r.headers.get("if-match"), r.headers.get("if-range"))]
    assert len(unguarded) <= 1, "only the request that learns the validator may lack it"


@pytest.mark.parametrize(
    "behaviour",
    [
        {"etag": None},
        {"etag": None, "last_modified": None},
        {"etag": 'W/"weak"'},
        {"head": False},
        {"ranges": False, "etag": None, "head": False},
        {"if_match": False},
        {"status": 503, "status_times": 2, "headers": {"Retry-After": "0"}},
        {"status": 429, "status_times": 1, "headers": {"Retry-After": "1"}},
        {"status": 500, "status_times": 1},
        {"cut_at": 1000, "cut_times": 2},
        {"ranges": False, "cut_at": 1000, "cut_times": 1},
        {"headers": {"Content-Disposition": "attachment"}},
    ],
    ids=lambda behaviour: ",".join(f"{name}={value}" for name, value in behaviour.items())[:60],
)
def test_origins_that_are_odd_but_honest(
    cli: Modelstore, http_server: HttpServer, store_root: Path, behaviour: dict[str, object]
) -> None:
    origin = http_server.add("/m.gguf", PatternBody(2 * PIECE + 17), **behaviour)
    assert_model(store_root, cli("fetch", origin.url), origin.url, {"m.gguf": origin.body.sha256})


@pytest.mark.parametrize(
    "behaviour",
    [
        {"gzip": True},
        {"gzip": True, "ranges": False},
        {"chunked": True, "ranges": False},
        {"content_range": "bytes 1-17/18"},
        {"content_range": "nonsense"},
    ],
    ids=str,
)
def test_a_lying_origin_gives_the_right_bytes_or_an_error(
    cli: Modelstore, http_server: HttpServer, store_root: Path, behaviour: dict[str, object]
) -> None:
    origin = http_server.add("/m.gguf", BODY, **behaviour)
    result = cli("fetch", origin.url)
    if result.returncode == 0:
        assert_model(store_root, result, origin.url, {"m.gguf": origin.body.sha256})
    else:
        assert result.returncode in (5, 6, 7), result
        result.failed(result.returncode)
        assert visible(store_root) == {}


@pytest.mark.parametrize("etag", [None, 'W/"same"'])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_never_a_mixture_of_two_versions(
    cli: Modelstore, http_server: HttpServer, store_root: Path, etag: str | None, after: int
) -> None:
    """Nothing strong to pin the ranges to, so they may not be put together: one stream, or an error."""
    old, new = PatternBody(3 * CHUNK), PatternBody(3 * CHUNK, seed=1)
    origin = http_server.add("/m.gguf", old, changed=new, changes_after=after, etag=etag, last_modified=None)
    result = cli("fetch", origin.url)
    if result.returncode == 0:
        assert digests(result.path)["m.gguf"] in (old.sha256, new.sha256)
    else:
        assert result.returncode in (5, 6), result
        assert visible(store_root) == {}


def test_https_proxy(cli: Modelstore, http_server: HttpServer) -> None:
    """The proxy is asked for the tunnel (and refuses); the name is not looked up here."""
    result = cli.with_env(HTTPS_PROXY=http_server.url)("fetch", "https://no-such-host.invalid/m.gguf")
    result.failed(5)
    assert {(request.method, request.path) for request in http_server.requests} == {
        ("CONNECT", "no-such-host.invalid:443")
    }


def test_no_proxy(cli: Modelstore, http_server: HttpServer, store_root: Path) -> None:
    origin = http_server.add("/m.gguf", BODY)
    elsewhere = cli.with_env(HTTP_PROXY="http://127.0.0.1:1", http_proxy="http://127.0.0.1:1", NO_PROXY="127.0.0.1")
    assert_model(store_root, elsewhere("fetch", origin.url), origin.url, {"m.gguf": origin.body.sha256})


def test_redirect_to_another_host(cli: Modelstore, http_server: HttpServer, store_root: Path) -> None:
    with HttpServer("127.0.0.2") as cdn:
        elsewhere = cdn.add("/x/9f3c", PatternBody(CHUNK + 5))
        origin = http_server.add("/m.gguf", redirect=elsewhere.url)
        assert_model(store_root, cli("fetch", origin.url), origin.url, {"m.gguf": elsewhere.body.sha256})


def test_https_with_a_private_authority(cli: Modelstore, tls_server: HttpServer, store_root: Path) -> None:
    origin = tls_server.add("/m.gguf", PatternBody(CHUNK + 5))
    result = cli.with_env(SSL_CERT_FILE=str(TLS_CERT))("fetch", origin.url)
    assert_model(store_root, result, origin.url, {"m.gguf": origin.body.sha256})


def test_percent_escapes_of_the_name_are_decoded(cli: Modelstore, http_server: HttpServer, store_root: Path) -> None:
    origin = http_server.add("/a%20b/my%20model.gguf", BODY)
    assert_model(store_root, cli("fetch", origin.url), origin.url, {"my model.gguf": origin.body.sha256})


def test_one_connection_is_enough(cli: Modelstore, http_server: HttpServer, store_root: Path) -> None:
    origin = http_server.add("/m.gguf", PatternBody(2 * CHUNK))
    result = cli("fetch", "--connections", "1", origin.url)
    assert_model(store_root, result, origin.url, {"m.gguf": origin.body.sha256})


# ---------------------------------------------------------------- file


@pytest.mark.parametrize("form", ["url", "absolute", "relative"])
def test_directory(cli: Modelstore, sharded_model_dir: Path, store_root: Path, form: str) -> None:
    url = f"file://{sharded_model_dir}"
    source = {"url": url, "absolute": str(sharded_model_dir), "relative": f"./{sharded_model_dir.name}"}[form]
    before = stats(sharded_model_dir)
    result = cli("fetch", source, cwd=sharded_model_dir.parent)
    target = assert_model(store_root, result, url, digests(sharded_model_dir))
    assert (target / "empty.txt").read_bytes() == b""
    assert stats(sharded_model_dir) == before, "the source is only read"


@pytest.mark.parametrize("form", ["file://{}", "{}"])
def test_one_local_file(cli: Modelstore, store_root: Path, tmp_path: Path, form: str) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(BODY)
    result = cli("fetch", form.format(source))
    target = assert_model(store_root, result, f"file://{source}", {"model.gguf": sha256_of(BODY)})
    source.write_bytes(b"overwritten in place")
    assert (target / "model.gguf").read_bytes() == BODY, "the store has bytes of its own"


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("?allow=*.json", {"config.json", "tokenizer.json", "tokenizer_config.json", "1_Pooling/config.json"}),
        ("?allow=*.json&ignore=tokenizer*,1_*", {"config.json"}),
        ("?allow=empty.txt,1_Pooling/*", {"empty.txt", "1_Pooling/config.json"}),
    ],
)
@pytest.mark.parametrize("scheme", ["file://", ""])
def test_selected_files(
    cli: Modelstore, sharded_model_dir: Path, store_root: Path, query: str, names: set[str], scheme: str
) -> None:
    (sharded_model_dir / "model.safetensors.index.json").unlink()
    result = cli("fetch", f"{scheme}{sharded_model_dir}{query}")
    wanted = {name: digest for name, digest in digests(sharded_model_dir).items() if name in names}
    assert wanted.keys() == names
    assert_model(store_root, result, f"file://{sharded_model_dir}{query}", wanted)


def test_link_that_stays_inside_is_read(cli: Modelstore, tiny_model_dir: Path, store_root: Path) -> None:
    (tiny_model_dir / "alias.json").symlink_to("config.json")
    result = cli("fetch", tiny_model_dir)
    target = assert_model(store_root, result, f"file://{tiny_model_dir}", digests(tiny_model_dir))
    assert not (target / "alias.json").is_symlink()


def test_same_files_same_manifest_wherever_they_came_from(
    cli: Modelstore, http_server: HttpServer, tmp_path: Path, tiny_model_dir: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_model_dir, moved)
    first, second = (cli("fetch", "--json", source).json for source in (tiny_model_dir, moved))
    assert first["manifest"] == second["manifest"]
    assert first["key"] != second["key"]
    weights = tmp_path / "m.gguf"
    weights.write_bytes(BODY)
    local = cli("fetch", "--json", weights).json
    assert cli("fetch", "--json", http_server.add("/m.gguf", BODY).url).json["manifest"] == local["manifest"]


# ---------------------------------------------------------------- output


def test_json(cli: Modelstore, http_server: HttpServer, store_root: Path) -> None:
    origin = http_server.add("/m.gguf", BODY)
    found = cli("fetch", "--json", origin.url).json
    assert set(found) == {"source", "key", "manifest", "path", "layout", "seconds", "bytes", "files"}
    assert (found["source"], found["key"], found["layout"]) == (origin.url, key_of(origin.url)[:16], "files")
    assert found["path"] == str(store_root / "models" / found["key"])
    assert found["files"] == [{"path": "m.gguf", "size": len(BODY), "digest": f"sha256:{sha256_of(BODY)}"}]
    assert sha256_of(blob(store_root, found["manifest"])) == found["manifest"].removeprefix("sha256:")
    assert found["seconds"] > 0
    assert {"origin", "reused"} <= set(found["bytes"]) <= {"origin", "reused", str(store_root)}
    assert found["bytes"]["origin"] == len(BODY)
    warm = cli("fetch", "--json", origin.url).json
    assert warm["bytes"]["origin"] == 0
    assert {**warm, "bytes": 0, "seconds": 0} == {**found, "bytes": 0, "seconds": 0}


@pytest.mark.parametrize("options", [(), ("-v",), ("-q",), ("--log-format", "json"), ("--log-format", "text", "-v")])
def test_stdout_is_one_line_whatever_is_logged(
    run_modelstore: Modelstore, http_server: HttpServer, store_root: Path, options: tuple[str, ...]
) -> None:
    origin = http_server.add("/m.gguf", BODY)
    result = run_modelstore("--tier", store_root, *options, "fetch", origin.url)
    assert result.path.is_dir()
    if "-q" in options:
        assert result.stderr == ""
    if "json" in options:
        assert all(isinstance(json.loads(line), dict) for line in result.stderr.splitlines())


# ---------------------------------------------------------------- where the store is


def test_default_store(run_modelstore: Modelstore, tiny_model_dir: Path) -> None:
    root = run_modelstore.home / "cache" / "modelstore"
    assert_model(root, run_modelstore("fetch", tiny_model_dir), f"file://{tiny_model_dir}", digests(tiny_model_dir))
    assert (root / "CACHEDIR.TAG").read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55")
    assert json.loads((root / ".modelstore" / "format.json").read_text())["version"] == 1


def test_tier_from_the_environment(run_modelstore: Modelstore, tiny_model_dir: Path, store_root: Path) -> None:
    result = run_modelstore.with_env(MODELSTORE_TIERS=str(store_root))("fetch", tiny_model_dir)
    assert_model(store_root, result, f"file://{tiny_model_dir}", digests(tiny_model_dir))


def test_kubernetes_service_variables_are_not_ours(cli: Modelstore, tiny_model_dir: Path) -> None:
    service = {"MODELSTORE_SERVICE_HOST": "10.0.0.1", "MODELSTORE_SERVICE_PORT": "80", "MODELSTORE_PORT": "tcp://x:80"}
    service["MODELSTORE_PORT_80_TCP_ADDR"] = "10.0.0.1"
    assert cli.with_env(**service)("fetch", tiny_model_dir).path.is_dir()


# ---------------------------------------------------------------- --to


@pytest.mark.parametrize("there", ["missing", "empty"])
def test_to(cli: Modelstore, sharded_model_dir: Path, tmp_path: Path, there: str) -> None:
    target = tmp_path / "serve" / "model"
    target.parent.mkdir()
    if there == "empty":
        target.mkdir()
    assert cli("fetch", sharded_model_dir, "--to", target).path == target
    assert digests(target) == digests(sharded_model_dir)
    assert os.listdir(target.parent) == ["model"]


def test_to_is_relative_to_where_we_are(cli: Modelstore, tiny_model_dir: Path, tmp_path: Path) -> None:
    assert cli("fetch", tiny_model_dir, "--to", "here", cwd=tmp_path).path == tmp_path / "here"
    assert digests(tmp_path / "here") == digests(tiny_model_dir)


def test_to_a_complete_target_is_left_alone(cli: Modelstore, tiny_model_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"
    cli("fetch", tiny_model_dir, "--to", target).ok()
    before = stats(target)
    assert cli("fetch", tiny_model_dir, "--to", target).path == target
    assert stats(target) == before


@pytest.mark.parametrize("damage", ["file missing", "file truncated", "file replaced"])
def test_a_damaged_default_target_is_laid_out_again(cli: Modelstore, tiny_model_dir: Path, damage: str) -> None:
    target = cli("fetch", tiny_model_dir).path
    (target / "config.json").unlink()
    if damage != "file missing":
        original = (tiny_model_dir / "config.json").read_bytes()
        (target / "config.json").write_bytes(b"" if damage == "file truncated" else original[::-1])
    assert cli("fetch", tiny_model_dir).path == target
    assert digests(target) == digests(tiny_model_dir)


def test_laying_out_by_link_takes_no_space(cli: Modelstore, http_server: HttpServer, store_root: Path) -> None:
    origin = http_server.add("/m.gguf", PatternBody(CHUNK))
    target = cli("fetch", origin.url).path
    held = {path.stat().st_ino: path.stat().st_blocks * 512 for path in store_root.rglob("*")}
    linked = (target / "m.gguf").stat().st_ino == blob(store_root, origin.body.sha256).stat().st_ino
    assert linked or sum(held.values()) >= CHUNK, "a reflink shares its blocks under another inode"
    if linked:
        assert sum(held.values()) < 1.5 * CHUNK


# ---------------------------------------------------------------- pins


def test_right_pin_of_a_file(cli: Modelstore, http_server: HttpServer, store_root: Path) -> None:
    origin = http_server.add("/m.gguf", BODY)
    result = cli("fetch", f"{origin.url}#sha256={sha256_of(BODY)}")
    assert_model(store_root, result, origin.url, {"m.gguf": sha256_of(BODY)})


def test_right_pin_of_a_directory_is_its_manifest(cli: Modelstore, tiny_model_dir: Path, tmp_path: Path) -> None:
    manifest = cli("fetch", "--json", tiny_model_dir).json["manifest"]
    pinned = f"file://{tiny_model_dir}#sha256={manifest.removeprefix('sha256:')}"
    assert digests(cli.at(tmp_path / "other")("fetch", pinned).path) == digests(tiny_model_dir)


def test_wrong_pin_of_a_cached_model(cli: Modelstore, http_server: HttpServer, store_root: Path) -> None:
    origin = http_server.add("/m.gguf", BODY)
    cli("fetch", origin.url).ok()
    before = visible(store_root)
    cli("fetch", f"{origin.url}#sha256={'0' * 64}").failed(7)
    assert visible(store_root) == before


# ---------------------------------------------------------------- --refresh


def test_refresh_sees_the_new_version(cli: Modelstore, http_server: HttpServer, store_root: Path) -> None:
    origin = http_server.add("/m.gguf", BODY)
    cli("fetch", origin.url).ok()
    origin.body = BytesBody(BODY + b"more")
    assert (cli("fetch", origin.url).path / "m.gguf").read_bytes() == BODY, "trusted until told otherwise"
    result = cli("fetch", "--refresh", origin.url)
    assert_model(store_root, result, origin.url, {"m.gguf": origin.body.sha256})


def test_refresh_of_what_did_not_change_moves_no_bytes(cli: Modelstore, http_server: HttpServer) -> None:
    origin = http_server.add("/m.gguf", PatternBody(CHUNK))
    first = cli("fetch", origin.url).path
    sent = http_server.bytes_sent
    again = cli("fetch", "--refresh", "--json", origin.url).json
    assert (again["path"], again["bytes"]["origin"]) == (str(first), 0)
    assert http_server.bytes_sent - sent <= 4096


def test_refresh_without_the_origin_keeps_the_copy_and_warns(cli: Modelstore) -> None:
    with HttpServer() as server:
        origin = server.add("/m.gguf", BODY)
        first = cli("fetch", origin.url).path
    result = cli("fetch", "--refresh", origin.url)
    assert result.path == first
    assert (first / "m.gguf").read_bytes() == BODY
    assert str(urlsplit(origin.url).hostname) in result.stderr, "a warning that says what could not be reached"


# ---------------------------------------------------------------- vllm


@pytest.mark.parametrize("kind", ["tiny_model_dir", "sharded_model_dir"])
def test_vllm_layout(cli: Modelstore, kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source: Path = request.getfixturevalue(kind)
    found = cli("fetch", source, "--layout", "vllm", "--to", tmp_path / "model", "--json").json
    assert found["layout"] == "vllm"
    target = Path(found["path"])
    assert digests(target) == digests(source), "nothing of ours inside"
    for path in target.glob("*.safetensors"):
        with safe_open(path, framework="np") as weights:
            assert all(weights.get_tensor(name).shape == (8, 16) for name in weights.keys())  # noqa: SIM118


@pytest.mark.parametrize(
    "defect", ["no config", "no weights", "shard missing", "weights truncated", "header is not JSON", "two formats"]
)
def test_vllm_refuses_what_would_not_load(
    cli: Modelstore, sharded_model_dir: Path, store_root: Path, tmp_path: Path, defect: str
) -> None:
    shards = sorted(sharded_model_dir.glob("*.safetensors"))
    match defect:
        case "no config":
            (sharded_model_dir / "config.json").unlink()
        case "no weights":
            for path in (*shards, sharded_model_dir / "model.safetensors.index.json"):
                path.unlink()
        case "shard missing":
            shards[1].unlink()
        case "weights truncated":
            os.truncate(shards[0], shards[0].stat().st_size - 1)
        case "header is not JSON":
            shards[0].write_bytes((16).to_bytes(8, "little") + b"x" * 64)
        case _:
            (sharded_model_dir / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    target = tmp_path / "out" / "model"
    target.parent.mkdir()
    cli("fetch", sharded_model_dir, "--layout", "vllm", "--to", target).failed(13)
    assert tree(target.parent) == {}
    cli("fetch", sharded_model_dir, "--layout", "vllm").failed(13)
    assert [name for name in visible(store_root) if name.startswith("models/")] == []
