"""s3://: which objects a URL names, what they are called, and what is said when there are none."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.support import Modelstore, blob, digests, key_of, sha256_of, staged, visible
from tests.support.httpserver import PatternBody
from tests.support.s3 import S3, hashed, kind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHUNK = 16 << 20
BODY = b"weights " * 5000
TREE = {
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": BODY,
    "model-00002-of-00002.safetensors": BODY[::-1],
    "1_Pooling/config.json": b'{"mean": true}',
    "a/b/c/deep.txt": b"deep",
    "empty.txt": b"",
}
ODD = [
    "with space.gguf",
    "plus+plus.gguf",
    "percent%20twenty.gguf",
    "percent%2Fslash.gguf",
    "ünï-π-模型.gguf",
    "(brackets)&ampersand=;,:@$!'~*.gguf",
    "trailing-dot..gguf",
    "colon::colon:.gguf",
    "日本語/ディレクトリ/m.gguf",
]


@pytest.fixture
def unused_port() -> Iterator[int]:
    """Taken, but nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


# ---------------------------------------------------------------- one object


@pytest.mark.parametrize("size", [0, 1, 100_000, CHUNK, CHUNK + 1])
def test_one_object(aws: Modelstore, s3: S3, store_root: Path, size: int) -> None:
    body = PatternBody(size)
    s3.put("org/model/weights.gguf", b"".join(body.read(0, size)))
    url = s3.url("org/model/weights.gguf")
    result = aws("fetch", url)
    assert result.path == store_root / "models" / key_of(url)[:16]
    assert digests(result.path) == {"weights.gguf": body.sha256}
    assert sha256_of(blob(store_root, body.sha256)) == body.sha256
    assert staged(store_root) == []
    assert s3.server.data_sent <= size + 4096, "one copy, plus a probe"
    assert len(s3.server.others) <= 2


def test_json_and_the_same_manifest_as_from_elsewhere(aws: Modelstore, s3: S3, tmp_path: Path) -> None:
    s3.put("m.gguf", BODY)
    (tmp_path / "m.gguf").write_bytes(BODY)
    found = aws("fetch", "--json", s3.url("m.gguf")).json
    assert (found["source"], found["key"]) == (s3.url("m.gguf"), key_of(s3.url("m.gguf"))[:16])
    assert found["files"] == [{"path": "m.gguf", "size": len(BODY), "digest": f"sha256:{sha256_of(BODY)}"}]
    assert found["bytes"]["origin"] == len(BODY)
    assert aws("fetch", "--json", tmp_path / "m.gguf").json["manifest"] == found["manifest"]


@pytest.mark.parametrize("key", ODD[::2])
def test_odd_names_of_one_object(aws: Modelstore, s3: S3, key: str) -> None:
    """As `aws s3` has it: what is written is the key, byte for byte."""
    s3.put("dir with+space/" + key, BODY)
    assert digests(aws("fetch", s3.url("dir with+space/" + key)).path) == {key.rpartition("/")[2]: sha256_of(BODY)}


def test_percent_escapes_are_not_decoded(aws: Modelstore, s3: S3) -> None:
    s3.put("a b.gguf", b"with a space")
    aws("fetch", s3.url("a%20b.gguf")).failed(3)
    s3.put("a%20b.gguf", b"with an escape")
    assert digests(aws("fetch", s3.url("a%20b.gguf")).path) == hashed({"a%20b.gguf": b"with an escape"})


def test_an_object_needs_no_right_to_list(aws: Modelstore, s3: S3) -> None:
    """A policy with s3:GetObject alone is common."""
    s3.put("m.gguf", BODY)
    s3.server.script = lambda request, answer: answer.replace(403) if kind(request) == "list" else None
    assert digests(aws("fetch", s3.url("m.gguf")).path) == {"m.gguf": sha256_of(BODY)}


def test_storage_classes_that_can_be_read(aws: Modelstore, s3: S3) -> None:
    classes = ("STANDARD_IA", "INTELLIGENT_TIERING", "ONEZONE_IA", "GLACIER_IR", "REDUCED_REDUNDANCY")
    for name in classes:
        s3.put(f"m/{name}", name.encode(), StorageClass=name)
    aws("fetch", s3.url("m/GLACIER_IR")).ok()
    assert digests(aws("fetch", s3.url("m/")).path) == hashed({name: name.encode() for name in classes})


# ---------------------------------------------------------------- prefixes


@pytest.mark.parametrize("slash", ["/", ""])
def test_prefix(aws: Modelstore, s3: S3, store_root: Path, slash: str) -> None:
    s3.fill(TREE, "org/model/")
    url = s3.url("org/model") + slash
    result = aws("fetch", url)
    assert result.path == store_root / "models" / key_of(url)[:16]
    assert digests(result.path) == hashed(TREE)
    assert staged(store_root) == []


@pytest.mark.parametrize("form", ["s3://{}/", "s3://{}"])
def test_whole_bucket(aws: Modelstore, s3: S3, form: str) -> None:
    s3.fill(TREE)
    assert digests(aws("fetch", form.format(s3.bucket)).path) == hashed(TREE)


def test_exactly_the_prefix(aws: Modelstore, s3: S3) -> None:
    s3.fill(
        {"model": b"object", "model2/a": b"2", "model/a": b"1", "model.txt": b"t", "modem/a": b"m", "Model/a": b"M"}
    )
    assert digests(aws("fetch", s3.url("model/")).path) == hashed({"a": b"1"})
    assert digests(aws("fetch", s3.url("model")).path) == hashed({"model": b"object"}), "the object comes first"
    aws("fetch", s3.url("mode")).failed(3)
    aws("fetch", s3.url("mode/")).failed(3)
    aws("fetch", s3.url("model/a/")).failed(3)


@pytest.mark.parametrize("slash", ["/", ""])
def test_markers_of_directories_are_no_files(aws: Modelstore, s3: S3, slash: str) -> None:
    s3.fill({"": b"", "a": b"1", "sub/": b"", "sub/b": b"2", "hollow/": b"", "empty": b""}, "model/")
    assert digests(aws("fetch", s3.url("model") + slash).path) == hashed({"a": b"1", "sub/b": b"2", "empty": b""})


@pytest.mark.parametrize("slash", ["/", ""])
def test_nothing_but_markers(aws: Modelstore, s3: S3, store_root: Path, slash: str) -> None:
    s3.fill({"": b"", "sub/": b""}, "model/")
    aws("fetch", s3.url("model") + slash).failed(3)
    assert visible(store_root) == {}


def test_odd_names_below_a_prefix(aws: Modelstore, s3: S3) -> None:
    files = {**dict.fromkeys(ODD, BODY), "question?.txt": b"?", "hash#1.txt": b"#", "a  b": b"two spaces"}
    s3.fill(files, "ein präfix+/%41/")
    assert digests(aws("fetch", s3.url("ein präfix+/%41/")).path) == hashed(files)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("?allow=*.json", {"config.json", "1_Pooling/config.json"}),
        ("?allow=*.json&ignore=1_*", {"config.json"}),
        ("?ignore=*.safetensors,a/", {"config.json", "1_Pooling/config.json", "empty.txt"}),
        ("?allow=a/", {"a/b/c/deep.txt"}),
    ],
)
def test_selection(aws: Modelstore, s3: S3, query: str, names: set[str]) -> None:
    s3.fill(TREE, "model/")
    result = aws("fetch", s3.url("model/") + query)
    assert digests(result.path) == hashed({path: body for path, body in TREE.items() if path in names})
    assert not any("safetensors" in request.path for request in s3.server.log), "what is not wanted is not asked for"


def test_selection_without_a_slash(aws: Modelstore, s3: S3) -> None:
    s3.fill(TREE, "model/")
    assert digests(aws("fetch", s3.url("model?allow=config.json")).path) == hashed({"config.json": b"{}"})


@pytest.mark.parametrize("query", ["?allow=*.gguf", "?ignore=*"])
def test_nothing_selected(aws: Modelstore, s3: S3, query: str) -> None:
    s3.fill(TREE, "model/")
    aws("fetch", s3.url("model/") + query).failed(3)


@pytest.mark.parametrize("query", ["?revision=1", "?versionId=abc", "?allow=*&versionId=abc"])
def test_queries_that_mean_nothing_for_a_prefix(aws: Modelstore, s3: S3, query: str) -> None:
    s3.fill(TREE, "model/")
    aws("fetch", s3.url("model/") + query).failed(2)


@pytest.mark.parametrize("page", [1, 4])
def test_listings_in_pages(aws: Modelstore, s3: S3, page: int) -> None:
    s3.server.page = page
    s3.fill(TREE, "model/")
    s3.fill({"": b"", "sub/": b""}, "model/")
    assert digests(aws("fetch", s3.url("model/")).path) == hashed(TREE)


def test_more_than_a_thousand_keys(aws: Modelstore, s3: S3) -> None:
    files = {f"part-{number % 7}/{number:04}.json": f"{number}".encode() for number in range(1005)}
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda item: s3.put(f"many/{item[0]}", item[1]), files.items()))
    result = aws("fetch", s3.url("many/"), timeout=110)
    assert digests(result.path) == hashed(files)
    assert sum(kind(request) == "list" for request in s3.server.log) == 2


@pytest.mark.parametrize(
    "keys",
    [
        ["m/a//b", "m/c"],
        ["m/../escape"],
        ["m/a/../../../escape"],
        ["m/./a"],
        ["m//etc/passwd"],
        ["m/a", "m/a/b"],
        ["m/README", "m/readme"],
        ["m/back\\slash"],
    ],
    ids=str,
)
def test_keys_that_are_no_paths(aws: Modelstore, s3: S3, store_root: Path, tmp_path: Path, keys: list[str]) -> None:
    for key in keys:
        s3.put(key, BODY)
    result = aws("fetch", s3.url("m/"), "--to", tmp_path / "serve")
    assert result.returncode in (2, 7), result
    result.failed(result.returncode)
    assert visible(store_root) == {}
    assert not (tmp_path / "serve").exists()
    assert not list(tmp_path.rglob("escape"))
    assert s3.server.data_log == [], "refused before a byte is fetched"


def test_a_bad_key_can_be_left_out(aws: Modelstore, s3: S3) -> None:
    s3.fill({"README": b"1", "readme": b"2"}, "m/")
    assert digests(aws("fetch", s3.url("m/?ignore=README")).path) == hashed({"readme": b"2"})


# ---------------------------------------------------------------- versions


def test_an_old_version(aws: Modelstore, s3: S3) -> None:
    s3.client.put_bucket_versioning(Bucket=s3.bucket, VersioningConfiguration={"Status": "Enabled"})
    big = b"".join(PatternBody(CHUNK + 99).read(0, CHUNK + 99))
    old = s3.put("m.gguf", big)["VersionId"]
    s3.put("m.gguf", b"new")
    url = s3.url(f"m.gguf?versionId={old}")
    assert digests(aws("fetch", url).path) == hashed({"m.gguf": big})
    assert digests(aws("fetch", s3.url("m.gguf")).path) == hashed({"m.gguf": b"new"})
    s3.client.delete_object(Bucket=s3.bucket, Key="m.gguf")
    fresh = Modelstore(aws.home, ("--tier", str(aws.home / "another")), aws.env)
    assert digests(fresh("fetch", url).path) == hashed({"m.gguf": big})
    fresh("fetch", s3.url("m.gguf")).failed(3)


def test_a_version_that_is_not_there(aws: Modelstore, s3: S3) -> None:
    s3.client.put_bucket_versioning(Bucket=s3.bucket, VersioningConfiguration={"Status": "Enabled"})
    s3.put("m.gguf", BODY)
    aws("fetch", s3.url("m.gguf?versionId=9ef3f135-e367-4cc3-a846-e83be460fdf5")).failed(3)


# ---------------------------------------------------------------- not there


def test_not_there(aws: Modelstore, s3: S3, store_root: Path) -> None:
    s3.put("other", BODY)
    for url in (
        s3.url("nothing"),
        s3.url("nothing/"),
        f"s3://no-such-{s3.bucket}/m.gguf",
        f"s3://no-such-{s3.bucket}/m/",
    ):
        aws("fetch", url).failed(3, url)
    assert visible(store_root) == {}


@pytest.mark.parametrize("url", ["s3:///key", "s3://", "s3://UPPER_case..bucket!/key", "s3://b/", "s3://-/x"])
def test_no_name_of_a_bucket(aws: Modelstore, url: str) -> None:
    """`b` is too short for a name, but that is for the server to say."""
    result = aws("fetch", url)
    assert result.returncode in (2, 3), result
    result.failed(result.returncode)


def test_nobody_answers(aws: Modelstore, unused_port: int) -> None:
    nowhere = aws.with_env(AWS_ENDPOINT_URL=f"http://127.0.0.1:{unused_port}")
    nowhere("fetch", "s3://bucket/m.gguf", timeout=60).failed(5)


# ---------------------------------------------------------------- warm


@pytest.mark.parametrize("key", ["model/", "model/config.json"])
def test_a_warm_hit_asks_nobody(aws: Modelstore, cli: Modelstore, s3: S3, key: str) -> None:
    s3.fill(TREE, "model/")
    first = aws("fetch", s3.url(key)).path
    s3.server.forget()
    assert aws("fetch", s3.url(key)).path == first
    assert cli("fetch", s3.url(key)).path == first, "no keys, no endpoint, no region"
    assert aws("path", s3.url(key)).path == first
    assert aws("fetch", "--offline", s3.url(key)).path == first
    assert s3.server.log == []


def test_offline_and_not_cached(aws: Modelstore, s3: S3) -> None:
    s3.put("m.gguf", BODY)
    aws("fetch", "--offline", s3.url("m.gguf")).failed(11)
    assert s3.server.log == []


def test_a_warm_hit_needs_no_library(aws: Modelstore, s3: S3, tmp_path: Path) -> None:
    s3.put("m.gguf", BODY)
    first = aws("fetch", s3.url("m.gguf")).path
    (tmp_path / "blocked").mkdir()
    for name in ("botocore", "boto3", "s3fs", "fsspec"):
        (tmp_path / "blocked" / f"{name}.py").write_text("raise ModuleNotFoundError('it is not needed')\n")
    assert aws.with_env(PYTHONPATH=str(tmp_path / "blocked"))("fetch", s3.url("m.gguf")).path == first


def test_fetched_into_another_place(aws: Modelstore, s3: S3, tmp_path: Path) -> None:
    s3.fill(TREE, "model/")
    assert digests(aws("fetch", s3.url("model/"), "--to", tmp_path / "serve").path) == hashed(TREE)


def test_the_log_is_json_when_asked_for(aws: Modelstore, s3: S3) -> None:
    """Nothing that the library logs, or that it warns of, gets between the lines."""
    s3.fill(TREE, "model/")
    loud = replace(aws, options=(*aws.options, "-v", "--log-format", "json"))
    result = loud("fetch", s3.url("model/")).ok()
    assert all(isinstance(json.loads(line), dict) for line in result.stderr.splitlines())
