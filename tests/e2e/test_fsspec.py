"""gs://, az://, sftp://, memory:// and whatever else fsspec knows: what a URL names, and what must be installed."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import fsspec
import pytest

from modelstore import (
    ConfigError,
    ModelStoreError,
    SourceNotFound,
    Store,
)
from tests.support import Modelstore, digests, sha256_of, visible
from tests.support.filesystems import (
    AsyncRemoteFileSystem,
    PlainFileSystem,
    Remote,
    assert_model,
    fails,
    outcome,
    registered,
    right_or_refused,
)
from tests.support.httpserver import PatternBody
from tests.support.s3 import hashed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
CHUNK = 16 * MIB
BODY = b"weights " * 5000
OTHER = b"WEIGHTS " * 5000
BIG = b"".join(PatternBody(CHUNK + MIB + 17).read(0, CHUNK + MIB + 17))
TREE = {"config.json": b"{}", "model.safetensors": BODY, "a/b/c": b"deep", "empty": b"", "with space+ü.txt": b"x"}
NUMBERS = itertools.count(1)


@pytest.fixture
def store(store_root: Path) -> Store:
    return Store([store_root])


@pytest.fixture(params=[PlainFileSystem, AsyncRemoteFileSystem], ids=["plain", "async"])
def any_remote(request: pytest.FixtureRequest) -> Iterator[Remote]:
    with registered(request.param) as made:
        yield made


@pytest.fixture
def remote() -> Iterator[Remote]:
    with registered() as made:
        yield made


@pytest.fixture
def memory() -> Iterator[str]:
    """The URL of an empty bucket in memory."""
    filesystem = fsspec.filesystem("memory")
    bucket = f"bucket-{next(NUMBERS)}"
    yield f"memory://{bucket}/"
    if filesystem.exists(f"/{bucket}"):
        filesystem.rm(f"/{bucket}", recursive=True)


def fill(url: str, files: dict[str, bytes]) -> None:
    for path, body in files.items():
        fsspec.filesystem("memory").pipe_file(url + path, body)


# ---------------------------------------------------------------- what a URL names


def test_memory(store: Store, store_root: Path, memory: str) -> None:
    fill(memory + "model/", {**TREE, "big": BIG})
    fill(memory, {"model2/a": b"2", "model.txt": b"t"})
    assert_model(store_root, store.fetch(memory + "model/"), memory + "model/", {**TREE, "big": BIG})
    assert_model(store_root, store.fetch(memory + "model"), memory + "model", {**TREE, "big": BIG})
    assert_model(store_root, store.fetch(memory + "model/a/b/c"), memory + "model/a/b/c", {"c": b"deep"})


@pytest.mark.parametrize("size", [0, 1, MIB, CHUNK, CHUNK + 1])
def test_one_object(store: Store, store_root: Path, any_remote: Remote, size: int) -> None:
    body = b"".join(PatternBody(size).read(0, size))
    any_remote.put("bucket/dir/m.gguf", body)
    url = any_remote.url("bucket/dir/m.gguf")
    assert_model(store_root, store.fetch(url), url, {"m.gguf": body})
    reads = [read for read in any_remote.reads if read.path == "bucket/dir/m.gguf"]
    assert all(isinstance(read.start, int) and isinstance(read.stop, int) for read in reads)
    assert all((read.stop or 0) - (read.start or 0) <= MIB for read in reads), "at most 1 MiB a call"
    assert sum((read.stop or 0) - (read.start or 0) for read in reads) == size, "one copy"


@pytest.mark.parametrize("slash", ["/", ""])
def test_prefix(store: Store, store_root: Path, any_remote: Remote, slash: str) -> None:
    any_remote.fill(TREE, "bucket/model/")
    any_remote.fill({"model2/a": b"2", "model.txt": b"t"}, "bucket/")
    url = any_remote.url("bucket/model") + slash
    assert_model(store_root, store.fetch(url), url, TREE)


def test_exactly_the_prefix(store: Store, store_root: Path, any_remote: Remote) -> None:
    any_remote.fill({"mod": b"object", "model/a": b"1", "model2/a": b"2", "mod/x": b"below"}, "bucket/")
    assert digests(store.fetch(any_remote.url("bucket/model/")).path) == hashed({"a": b"1"})
    assert digests(store.fetch(any_remote.url("bucket/mod")).path) == hashed({"mod": b"object"})
    for name in ("mode", "mode/", "model/a/b", "nothing/"):
        with pytest.raises(SourceNotFound):
            store.fetch(any_remote.url(f"bucket/{name}"))


@pytest.mark.parametrize(
    ("query", "names"),
    [("?allow=*.json", {"config.json"}), ("?ignore=a/,*.safetensors,with*", {"config.json", "empty"})],
)
def test_selection(store: Store, any_remote: Remote, query: str, names: set[str]) -> None:
    any_remote.fill(TREE, "bucket/model/")
    model = store.fetch(any_remote.url("bucket/model/") + query)
    assert digests(model.path) == hashed({path: body for path, body in TREE.items() if path in names})
    with pytest.raises(SourceNotFound):
        store.fetch(any_remote.url("bucket/model/?allow=*.gguf"))
    with pytest.raises(ConfigError):
        store.fetch(any_remote.url("bucket/model/?revision=1"))


def test_entries_that_do_not_belong(store: Store, remote: Remote) -> None:
    """Filesystems over object stores list markers of directories, the prefix itself, and what begins alike."""

    def listing(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        odd = [("bucket/model/", "file"), ("bucket/model", "directory"), ("bucket/model2/x", "file")]
        return [*entries, *({"name": name, "size": 0, "type": kind} for name, kind in odd)]

    remote.fill({"a": b"1", "empty": b""}, "bucket/model/")
    remote.listing = listing
    assert digests(store.fetch(remote.url("bucket/model/")).path) == hashed({"a": b"1", "empty": b""})


@pytest.mark.parametrize("name", ["bucket/model/../../escape", "/etc/passwd", "bucket/model/a/../b", "escape"])
def test_entries_that_lead_elsewhere(store: Store, store_root: Path, remote: Remote, name: str) -> None:
    remote.put("bucket/model/a", b"1")
    remote.listing = lambda entries: [*entries, {"name": name, "size": 1, "type": "file"}]
    found = outcome(lambda: store.fetch(remote.url("bucket/model/")))
    right_or_refused(found, store_root, {"a": b"1"}, 2, 3, 5, 7)
    assert not any(read.path == name for read in remote.reads)


@pytest.mark.parametrize("size", [None, -1, "many", 2.5])
def test_sizes_that_are_none(store: Store, store_root: Path, remote: Remote, size: Any) -> None:
    remote.put("bucket/model/a", BODY)
    remote.describe = lambda entry: {**entry, "size": size}
    for name in ("bucket/model/", "bucket/model/a"):
        found = outcome(lambda name=name: store.fetch(remote.url(name)))
        assert isinstance(found, ModelStoreError)
        assert found.exit_code in (5, 6, 7), repr(found)
        assert visible(store_root) == {}


@pytest.mark.parametrize("kind", ["link", "other", None])
def test_no_file_is_left_out_in_silence(store: Store, store_root: Path, remote: Remote, kind: str | None) -> None:
    """sftp lists links as links. A model without some of its files is not the model."""

    def describe(entry: dict[str, Any]) -> dict[str, Any]:
        changed = {**entry, "type": kind} if entry["name"].endswith("/b") else entry
        return {name: value for name, value in changed.items() if value is not None}

    remote.fill({"a": b"1", "b": b"2"}, "bucket/model/")
    remote.describe = describe
    found = outcome(lambda: store.fetch(remote.url("bucket/model/")))
    right_or_refused(found, store_root, {"a": b"1", "b": b"2"}, 2, 5, 7)


@pytest.mark.parametrize("folder", ["bucket/model/sub", "bucket/model"])
@pytest.mark.parametrize(
    ("problem", "code"),
    [(PermissionError("403"), 4), (TimeoutError("slow"), 5), (OSError(5, "Input/output error"), 5), (ValueError(), 5)],
    ids=["denied", "slow", "broken", "odd"],
)
def test_a_folder_that_cannot_be_listed(
    store: Store, store_root: Path, any_remote: Remote, folder: str, problem: Exception, code: int
) -> None:
    """fsspec's `find` passes over it without a word."""
    any_remote.fill({"a": b"1", "sub/b": b"2"}, "bucket/model/")
    any_remote.broken[folder] = problem
    for slash in ("/", ""):
        fails(code, store_root, lambda slash=slash: store.fetch(any_remote.url("bucket/model") + slash))


@pytest.mark.parametrize("name", ["with space.gguf", "plus+.gguf", "percent%20.gguf", "ünï-模型.gguf", "~tilde'.gguf"])
def test_odd_names(store: Store, store_root: Path, any_remote: Remote, name: str) -> None:
    any_remote.put(f"bucket/a b/{name}", BODY)
    for key, path in ((f"bucket/a b/{name}", name), ("bucket/a b/", name), ("bucket/", f"a b/{name}")):
        assert digests(store.fetch(any_remote.url(key)).path) == hashed({path: BODY})


def test_pins(store: Store, store_root: Path, remote: Remote) -> None:
    remote.put("bucket/m.gguf", BODY)
    url = remote.url("bucket/m.gguf")
    fails(7, store_root, lambda: store.fetch(f"{url}#sha256={sha256_of(OTHER)}"))
    assert_model(store_root, store.fetch(f"{url}#sha256={sha256_of(BODY)}"), url, {"m.gguf": BODY})


# ---------------------------------------------------------------- what is not installed, and what is not allowed


@pytest.mark.parametrize(
    ("url", "module"),
    [
        ("gs://bucket/m.gguf", "gcsfs"),
        ("az://container/m.gguf", "adlfs"),
        ("abfs://container@account.dfs.core.windows.net/model/", "adlfs"),
        ("sftp://someone:CANARYPASSWORD@host/models/m.gguf", "paramiko"),
        ("webdav://host/m.gguf", "webdav4"),
    ],
)
def test_a_missing_package_is_named(cli: Modelstore, tmp_path: Path, url: str, module: str) -> None:
    (tmp_path / "blocked" / module).mkdir(parents=True)
    missing = f"raise ModuleNotFoundError({f'No module named {module!r}'!r}, name={module!r})\n"
    (tmp_path / "blocked" / module / "__init__.py").write_text(missing)
    result = cli.with_env(PYTHONPATH=str(tmp_path / "blocked"))("fetch", url)
    result.failed(2, "pip install")
    assert "CANARYPASSWORD" not in result.stderr


@pytest.mark.parametrize(
    "url",
    [
        "zip://m.gguf::memory://bucket/a.zip",
        "simplecache::memory://bucket/m.gguf",
        "simplecache::s3://bucket/m.gguf",
        "filecache::https://127.0.0.1/m.gguf",
        "memory://bucket/m.gguf::zip://x",
        "simplecache://bucket/m.gguf",
        "filecache://bucket/m.gguf",
        "blockcache://bucket/m.gguf",
        "cached://bucket/m.gguf",
        "zip://bucket/m.gguf",
        "tar://bucket/m.gguf",
        "libarchive://bucket/m.gguf",
        "reference://bucket/m.gguf",
        "nonsense://bucket/m.gguf",
        "data://text/plain,abc",
    ],
)
def test_refused_protocols(store: Store, store_root: Path, url: str) -> None:
    """Those that unpack, that keep copies where nobody checks them, and those that nobody knows."""
    fails(2, store_root, lambda: store.fetch(url))


def test_nothing_there(cli: Modelstore) -> None:
    cli("fetch", "memory://bucket/m.gguf").failed(3, "memory://bucket/m.gguf")
    cli("fetch", "memory://bucket/model/").failed(3)
    cli("fetch", "--offline", "memory://bucket/model/").failed(11)
