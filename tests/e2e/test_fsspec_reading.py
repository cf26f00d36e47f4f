"""gs://, az://, sftp://, memory:// and whatever else fsspec knows: read through signed URLs or piece by piece."""

from __future__ import annotations

import itertools
import shutil
import traceback
from typing import TYPE_CHECKING, Any

import pytest

from modelstore import (
    ModelStoreError,
    SourceChanged,
    SourceNotFound,
    SourceUnauthorized,
    SourceUnavailable,
    Store,
    fetching,
)
from modelstore.transfer import limits
from tests.support import blob, digests, sha256_of, visible
from tests.support.filesystems import (
    AsyncRemoteFileSystem,
    PlainFileSystem,
    Read,
    Remote,
    assert_model,
    fails,
    outcome,
    registered,
    right_or_refused,
)
from tests.support.httpserver import HttpServer, PatternBody
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


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every retry is made, soon."""
    monkeypatch.setattr(limits, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(limits, "LONGEST_DELAY", 0.05)
    monkeypatch.setattr(fetching, "RESOLVE_DELAYS", (0.01, 0.02, 0.05))


# ---------------------------------------------------------------- signed URLs


def test_signed_urls_are_read_by_the_engine(
    store: Store, store_root: Path, remote: Remote, http_server: HttpServer
) -> None:
    remote.fill({"m.gguf": BIG, "empty": b"", "a b": BODY}, "bucket/model/")
    for number, (path, body) in enumerate(remote.files.items()):
        http_server.add(f"/{number}", body)
        assert path.startswith("bucket/")
    numbers = {path: number for number, path in enumerate(remote.files)}
    remote.sign = lambda path: f"{http_server.url}/{numbers[path]}?sig=CANARYSIGNATURE&sv=1"
    url = remote.url("bucket/model/")
    assert_model(store_root, store.fetch(url), url, {"m.gguf": BIG, "empty": b"", "a b": BODY})
    assert remote.reads == []
    ranges = [request for request in http_server.requests if request.path.startswith("/0?")]
    assert len([request for request in ranges if request.body_bytes > 1]) >= 2
    assert all("sig=CANARYSIGNATURE" in request.path for request in ranges)
    assert http_server.bytes_sent <= len(BIG) + len(BODY) + 8192
    said = b"".join(path.read_bytes() for path in store_root.rglob("*") if path.is_file())
    assert b"CANARYSIGNATURE" not in said


def test_nobody_logs_a_signature(
    store: Store, remote: Remote, http_server: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither we nor the libraries that we have do it, at whatever level the host program logs."""
    caplog.set_level(1)
    remote.put("bucket/m.gguf", BIG)
    origin = http_server.add("/m", BIG)
    remote.sign = lambda path: f"{origin.url}?sig=CANARYSIGNATURE&sv=1"
    store.fetch(remote.url("bucket/m.gguf"))
    assert "CANARYSIGNATURE" not in caplog.text


def test_signed_again_when_it_runs_out(store: Store, remote: Remote, http_server: HttpServer) -> None:
    remote.put("bucket/m.gguf", BODY)
    numbers = itertools.count(1)

    def sign(path: str) -> str:
        number = next(numbers)
        http_server.add(f"/{number}", BODY, **({"status": 403} if number == 1 else {}))
        return f"{http_server.url}/{number}?sig=CANARYSIGNATURE&sv=1"

    remote.sign = sign
    assert digests(store.fetch(remote.url("bucket/m.gguf")).path) == hashed({"m.gguf": BODY})
    assert len(remote.signed) <= 3


def test_signatures_that_are_refused(store: Store, store_root: Path, remote: Remote, http_server: HttpServer) -> None:
    remote.put("bucket/m.gguf", BODY)
    origin = http_server.add("/m", BODY, status=403)
    remote.sign = lambda path: f"{origin.url}?sig=CANARYSIGNATURE&sv=1"
    error = fails(4, store_root, lambda: store.fetch(remote.url("bucket/m.gguf")))
    assert "CANARYSIGNATURE" not in "".join(traceback.format_exception(error))
    assert len(http_server.requests) <= 6


def test_a_signed_url_to_something_else(
    store: Store, store_root: Path, remote: Remote, http_server: HttpServer
) -> None:
    """It is not as long as was listed."""
    remote.put("bucket/m.gguf", BODY)
    origin = http_server.add("/m", BODY + b"more")
    remote.sign = lambda path: origin.url
    with pytest.raises(ModelStoreError) as caught:
        store.fetch(remote.url("bucket/m.gguf"))
    assert caught.value.exit_code in (5, 6, 7)
    assert visible(store_root) == {}


@pytest.mark.parametrize(
    "problem",
    [
        NotImplementedError("no"),
        AttributeError("you need a private key to sign"),
        ValueError("no account key"),
        OSError(5),
    ],
    ids=lambda problem: type(problem).__name__,
)
def test_what_cannot_be_signed_is_read_in_pieces(store: Store, remote: Remote, problem: Exception) -> None:
    """gcsfs and adlfs raise all sorts of things where the credentials at hand cannot sign."""

    def sign(path: str) -> str:
        raise problem

    remote.put("bucket/m.gguf", BIG)
    remote.sign = sign
    assert digests(store.fetch(remote.url("bucket/m.gguf")).path) == hashed({"m.gguf": BIG})
    assert len(remote.signed) <= 2, "once is enough to know"


# ---------------------------------------------------------------- answers that are not what was asked for


def short(read: Read, data: bytes) -> bytes:
    return data[: len(data) // 2 + 1]


def empty(read: Read, data: bytes) -> bytes:
    return b""


def longer(read: Read, data: bytes) -> bytes:
    return data + b"more"


def text(read: Read, data: bytes) -> Any:
    return "weights"


def text_as_long(read: Read, data: bytes) -> Any:
    return "w" * len(data)


def nothing(read: Read, data: bytes) -> Any:
    return None


@pytest.mark.parametrize("bend", [short, empty, longer, text, text_as_long, nothing])
def test_answers_of_another_length(store: Store, store_root: Path, remote: Remote, bend: Any) -> None:
    """Never a hole, never a shift: the right bytes or an error."""
    remote.put("bucket/m.gguf", BIG)
    remote.bend = bend
    found = outcome(lambda: store.fetch(remote.url("bucket/m.gguf")))
    right_or_refused(found, store_root, {"m.gguf": BIG}, 5, 6, 7)
    assert bend in (short, longer) or isinstance(found, ModelStoreError), "there is nothing in it"


def test_the_whole_file_instead_of_a_range(store: Store, store_root: Path, remote: Remote) -> None:
    remote.put("bucket/m.gguf", BIG)
    remote.bend = lambda read, data: BIG
    found = outcome(lambda: store.fetch(remote.url("bucket/m.gguf")))
    right_or_refused(found, store_root, {"m.gguf": BIG}, 5, 6, 7)


def test_short_once(store: Store, remote: Remote) -> None:
    remote.put("bucket/m.gguf", BODY)
    remote.bend = lambda read, data: data[:1000] if len(remote.reads) == 1 else data
    assert digests(store.fetch(remote.url("bucket/m.gguf")).path) == hashed({"m.gguf": BODY})


PROBLEMS = [
    (FileNotFoundError("gone"), {3, 6}),
    (PermissionError("Forbidden"), {4}),
    (TimeoutError("slow"), {5}),
    (ConnectionResetError("reset"), {5}),
    (OSError(5, "Input/output error"), {5}),
    (RuntimeError("Session is closed"), {5}),
    (KeyError("etag"), {5}),
    (ValueError("CANARYNONSENSE\nin two lines"), {5}),
    (Exception(), {5}),
]


@pytest.mark.parametrize(("problem", "codes"), PROBLEMS, ids=[type(problem).__name__ for problem, _ in PROBLEMS])
@pytest.mark.parametrize("when", ["resolving", "reading"])
def test_exceptions_of_all_sorts(
    store: Store, store_root: Path, remote: Remote, problem: Exception, codes: set[int], when: str
) -> None:
    def fail(read: Read, data: bytes) -> bytes:
        raise problem

    remote.put("bucket/m.gguf", BODY)
    if when == "resolving":
        remote.failure = problem
    else:
        remote.bend = fail
    with pytest.raises(ModelStoreError) as caught:
        store.fetch(remote.url("bucket/m.gguf"))
    assert caught.value.exit_code in codes, repr(caught.value)
    assert "\n" not in str(caught.value)
    assert visible(store_root) == {}


def test_an_exception_once(store: Store, remote: Remote) -> None:
    def fail(read: Read, data: bytes) -> bytes:
        if len(remote.reads) == 1:
            raise ConnectionResetError("reset")
        return data

    remote.put("bucket/m.gguf", BODY)
    remote.bend = fail
    assert digests(store.fetch(remote.url("bucket/m.gguf")).path) == hashed({"m.gguf": BODY})


# ---------------------------------------------------------------- change


def test_changed_in_the_middle(store: Store, store_root: Path, remote: Remote) -> None:
    def change(read: Read, data: bytes) -> bytes:
        if len(remote.reads) == 1:
            remote.put("bucket/m.gguf", BIG[::-1])
        return data

    remote.put("bucket/m.gguf", BIG)
    remote.bend = change
    fails(6, store_root, lambda: store.fetch(remote.url("bucket/m.gguf"), connections=1))


@pytest.mark.parametrize("stamp", ["generation", "etag", "mtime", "modify", "modificationTime", "sha"])
def test_changed_whatever_the_version_is_called(store: Store, store_root: Path, remote: Remote, stamp: str) -> None:
    """By gcsfs; adlfs; sftp and smb; ftp; webhdfs; github."""
    remote.stamp = stamp
    test_changed_in_the_middle(store, store_root, remote)


@pytest.mark.parametrize("name", ["m.gguf", "model/"])
def test_a_remembered_object_that_changed(store: Store, store_root: Path, any_remote: Remote, name: str) -> None:
    any_remote.fill({"m.gguf": BODY, "model/m.gguf": BODY}, "bucket/")
    url = any_remote.url(f"bucket/{name}")
    first = store.fetch(url).path
    any_remote.fill({"m.gguf": OTHER, "model/m.gguf": OTHER}, "bucket/")
    any_remote.reads.clear()
    assert digests(store.fetch(url).path) == hashed({"m.gguf": BODY})
    assert any_remote.reads == []
    blob(store_root, sha256_of(BODY)).unlink()
    shutil.rmtree(first)
    with pytest.raises(SourceChanged):
        store.fetch(url)
    assert digests(store.fetch(url, refresh=True).path) == hashed({"m.gguf": OTHER}), "listings are not remembered"


def test_refresh_of_what_has_not_changed(store: Store, any_remote: Remote) -> None:
    any_remote.fill(TREE, "bucket/model/")
    store.fetch(any_remote.url("bucket/model/"))
    any_remote.reads.clear()
    assert store.fetch(any_remote.url("bucket/model/"), refresh=True).bytes["origin"] == 0
    assert any_remote.reads == []


# ---------------------------------------------------------------- credentials


def test_credentials_of_the_url(store: Store, store_root: Path, remote: Remote) -> None:
    remote.put("bucket/m.gguf", BODY)
    url = f"{remote.protocol}://someone:CANARYPASSWORD@bucket/m.gguf"
    assert_model(store_root, store.fetch(url), remote.url("bucket/m.gguf"), {"m.gguf": BODY})
    given = [options for options in remote.options if options.get("password")]
    assert given, "they move to the connection"
    assert {(options["username"], options["password"]) for options in given} == {("someone", "CANARYPASSWORD")}
    said = b"".join(path.read_bytes() for path in store_root.rglob("*") if path.is_file())
    assert b"CANARYPASSWORD" not in said
    nothing = url.replace("m.gguf", "nothing")
    with pytest.raises(SourceNotFound) as caught:
        store.fetch(nothing)
    assert "CANARYPASSWORD" not in "".join(traceback.format_exception(caught.value))


def test_refusals_have_names(store: Store, remote: Remote) -> None:
    remote.failure = PermissionError("403")
    with pytest.raises(SourceUnauthorized):
        store.fetch(remote.url("bucket/m.gguf"))
    remote.failure = ConnectionRefusedError(111, "refused")
    with pytest.raises(SourceUnavailable):
        store.fetch(remote.url("bucket/m.gguf"))
