"""s3:// from a server that fails, lies or has put things into an archive: a named error, and nothing visible."""

from __future__ import annotations

import gzip
import re
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support import Modelstore, Result, digests, finish, sha256_of, visible, wait_until
from tests.support.httpserver import PatternBody
from tests.support.s3 import S3, error, hashed, kind, on_data

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from tests.faults.server import Script
    from tests.faults.wire import Answer, Request

    Start = Callable[..., "subprocess.Popen[str]"]

CHUNK = 16 << 20
BODY = b"weights " * 5000
OTHER = b"WEIGHTS " * 5000
BIG = b"".join(PatternBody(2 * CHUNK + 4321).read(0, 2 * CHUNK + 4321))


def refused(result: Result, code: int, root: Path) -> None:
    result.failed(code)
    assert visible(root) == {}


# ---------------------------------------------------------------- archives


@pytest.mark.parametrize(("name", "key"), [("GLACIER", "m.gguf"), ("DEEP_ARCHIVE", "m/")])
def test_archived(aws: Modelstore, s3: S3, store_root: Path, name: str, key: str) -> None:
    for at in ("m.gguf", "m/m.gguf"):
        s3.put(at, BODY, StorageClass=name)
    result = aws("fetch", s3.url(key))
    refused(result, 8, store_root)
    assert "archive" in result.stderr.lower()
    assert len(s3.server.log) <= 6, "trying again does not help"
    for at in ("m.gguf", "m/m.gguf"):
        s3.client.restore_object(Bucket=s3.bucket, Key=at, RestoreRequest={"Days": 1})
    assert digests(aws("fetch", s3.url(key)).path) == hashed({"m.gguf": BODY})


def archived_tier(request: Request, answer: Answer) -> None:
    """As S3 speaks of an object that Intelligent-Tiering put into an archive tier; moto does not know these."""
    if kind(request) == "head":
        answer.set("x-amz-storage-class", "INTELLIGENT_TIERING")
        answer.set("x-amz-archive-status", "ARCHIVE_ACCESS")
    elif kind(request) == "get":
        tier = {"StorageClass": "INTELLIGENT_TIERING", "AccessTier": "ARCHIVE_ACCESS"}
        error(answer, 403, "InvalidObjectState", "The operation is not valid for the object's storage class", **tier)


def archived_silently(request: Request, answer: Answer) -> None:
    """Only reading it shows."""
    if kind(request) == "get":
        archived_tier(request, answer)


def restored_soon(request: Request, answer: Answer) -> None:
    archived_tier(request, answer)
    if kind(request) == "head":
        answer.set("x-amz-restore", 'ongoing-request="true"')


@pytest.mark.parametrize(
    ("script", "key"),
    [(archived_tier, "m.gguf"), (archived_tier, "m/"), (archived_silently, "m/"), (restored_soon, "m.gguf")],
)
def test_in_an_archive_tier(aws: Modelstore, s3: S3, store_root: Path, script: Script, key: str) -> None:
    for at in ("m.gguf", "m/m.gguf"):
        s3.put(at, BODY, StorageClass="INTELLIGENT_TIERING")
    s3.server.script = script
    result = aws("fetch", s3.url(key))
    refused(result, 8, store_root)
    assert "archive" in result.stderr.lower()
    assert len(s3.server.log) <= 6, "trying again does not help"


def test_one_archived_object_can_be_left_out(aws: Modelstore, s3: S3) -> None:
    s3.put("m/old", BODY, StorageClass="GLACIER")
    s3.put("m/new", OTHER)
    aws("fetch", s3.url("m/")).failed(8, "old")
    assert digests(aws("fetch", s3.url("m/?ignore=old")).path) == hashed({"new": OTHER})


# ---------------------------------------------------------------- odd, but honest


@pytest.mark.parametrize(
    ("encoding", "body"),
    [("gzip", gzip.compress(BODY, mtime=0)), ("br", BODY), ("aws-chunked", BODY), ("gzip", BIG)],
    ids=["gzip", "br", "aws-chunked", "large"],
)
def test_an_encoding_in_the_metadata(aws: Modelstore, s3: S3, encoding: str, body: bytes) -> None:
    """It is what somebody wrote when putting it there. The object is its bytes, as `aws s3 cp` has it.

    "aws-chunked" is what some stores keep of an upload by the newer SDKs; moto, like AWS, does not.
    """
    s3.put("m.json.gz", body, ContentEncoding=encoding)

    def script(request: Request, answer: Answer) -> None:
        if kind(request) in ("head", "get") and "response-content-encoding" not in request.query:
            answer.set("Content-Encoding", encoding)

    s3.server.script = script
    assert digests(aws("fetch", s3.url("m.json.gz")).path) == hashed({"m.json.gz": body})


@pytest.mark.parametrize("key", ["m.gguf", "m/"])
def test_no_etag_anywhere(aws: Modelstore, s3: S3, key: str) -> None:
    """Then nothing ties ranges together: one stream."""

    def script(request: Request, answer: Answer) -> None:
        answer.set("ETag")

    s3.fill({"m.gguf": BIG, "m/m.gguf": BIG})
    s3.server.script = script
    assert digests(aws("fetch", s3.url(key)).path) == hashed({"m.gguf": BIG})


# ---------------------------------------------------------------- faults


def cut(request: Request, answer: Answer) -> None:
    answer.strike, answer.at = "close", 1000


def flip(request: Request, answer: Answer) -> None:
    answer.flip = answer.stop // 2


def failing(status: int, code: str, message: str = "no") -> Callable[[Request, Answer], None]:
    return lambda request, answer: error(answer, status, code, message, Retry_After="0")


@pytest.mark.parametrize(
    ("times", "bend"),
    [
        (2, failing(503, "SlowDown")),
        (2, failing(500, "InternalError")),
        (1, failing(503, "ServiceUnavailable")),
        (1, failing(403, "ExpiredToken")),
        (1, failing(400, "ExpiredToken")),
        (1, failing(403, "AccessDenied", "Request has expired")),
        (1, failing(403, "RequestTimeTooSkewed")),
        (2, cut),
    ],
    ids=["slow-down", "internal", "unavailable", "expired-403", "expired-400", "url-expired", "skewed", "cut"],
)
def test_faults_that_pass(aws: Modelstore, s3: S3, times: int, bend: Callable[[Request, Answer], None]) -> None:
    s3.put("m.gguf", BODY)
    s3.server.script = on_data(times, bend)
    assert digests(aws("fetch", s3.url("m.gguf")).path) == hashed({"m.gguf": BODY})


def test_faults_of_every_kind_in_one_large_object(aws: Modelstore, s3: S3) -> None:
    faults = iter([failing(503, "SlowDown"), failing(403, "ExpiredToken"), cut, failing(500, "InternalError"), cut])
    s3.put("m.gguf", BIG)
    s3.server.script = on_data(5, lambda request, answer: next(faults)(request, answer))
    assert digests(aws("fetch", s3.url("m.gguf")).path) == hashed({"m.gguf": BIG})
    assert next(faults, None) is None
    assert s3.server.data_sent <= len(BIG) + 4096


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("what", ["list", "head"])
def test_slow_down_when_asked_what_there_is(aws: Modelstore, s3: S3, what: str, times: int) -> None:
    s3.fill({"a": BODY, "b": OTHER}, "m/")
    s3.server.page = 1
    refusals = iter(range(times))

    def script(request: Request, answer: Answer) -> None:
        if kind(request) == what and next(refusals, None) is not None:
            error(answer, 503, "SlowDown", "Please reduce your request rate.")

    s3.server.script = script
    assert digests(aws("fetch", s3.url("m")).path) == hashed({"a": BODY, "b": OTHER})


@pytest.mark.parametrize(
    ("code", "bend"),
    [
        (4, failing(403, "ExpiredToken")),
        (4, failing(400, "ExpiredToken")),
        (4, failing(403, "AccessDenied")),
        (3, failing(404, "NoSuchKey")),
        (6, failing(412, "PreconditionFailed")),
        (5, failing(400, "SomethingNew")),
    ],
    ids=["expired-403", "expired-400", "denied", "gone", "changed", "unknown"],
)
def test_faults_that_stay(
    aws: Modelstore, s3: S3, store_root: Path, code: int, bend: Callable[[Request, Answer], None]
) -> None:
    s3.put("m.gguf", BODY)
    s3.server.script = on_data(None, bend)
    refused(aws("fetch", s3.url("m.gguf")), code, store_root)
    assert len(s3.server.log) <= 12, "what will not change is not asked for again and again"


def test_a_flipped_bit(aws: Modelstore, s3: S3, store_root: Path) -> None:
    """TCP lets one pass now and then; where the object has a digest, we do not."""
    s3.put("m.gguf", BIG, Metadata={"sha256": sha256_of(BIG)})
    s3.server.script = on_data(None, flip)
    refused(aws("fetch", s3.url("m.gguf")), 7, store_root)


@pytest.mark.parametrize("page", [b"", b"<html>a proxy</html>", b"<?xml version='1.0'?><ListBucketResult>"], ids=len)
def test_listings_that_are_none(aws: Modelstore, s3: S3, store_root: Path, page: bytes) -> None:
    s3.put("m/a", BODY)

    def script(request: Request, answer: Answer) -> None:
        if kind(request) == "list":
            answer.replace(200, page, Content_Type="application/xml")

    s3.server.script = script
    result = aws("fetch", s3.url("m/"))
    assert result.returncode in (3, 5, 7), result
    refused(result, result.returncode, store_root)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (rb"<Key>m/a</Key>", rb"<Key>elsewhere/a</Key>"),
        (rb"<Key>m/a</Key>", rb"<Key>m/../../a</Key>"),
        (rb"<Size>\d+</Size>", rb"<Size>-1</Size>"),
        (rb"<Size>\d+</Size>", rb"<Size>many</Size>"),
        (rb"<Size>\d+</Size>", rb""),
        (rb"<ETag>.*?</ETag>", rb""),
        (rb"<Size>\d+</Size>", rb"<Size>17</Size>"),
        (rb"<IsTruncated>false<", rb"<NextContinuationToken>same</NextContinuationToken><IsTruncated>true<"),
        (rb"<IsTruncated>false<", rb"<IsTruncated>true<"),
    ],
    ids=["elsewhere", "above", "negative", "no number", "no size", "no etag", "wrong size", "endless", "no token"],
)
def test_listings_that_lie(aws: Modelstore, s3: S3, store_root: Path, old: bytes, new: bytes) -> None:
    """The right bytes under the right name, or a named error; and it ends."""
    s3.put("m/a", BODY)
    pages: list[bytes] = []

    def script(request: Request, answer: Answer) -> None:
        if kind(request) == "list":
            page = b"".join(answer.body.read(0, answer.body.size))
            pages.append(re.sub(old, new, page, flags=re.IGNORECASE | re.DOTALL))
            assert pages[0] != page
            answer.replace(200, pages[0], Content_Type="application/xml")

    s3.server.script = script
    result = aws("fetch", s3.url("m/"))
    if result.returncode == 0:
        assert digests(result.path) == hashed({"a": BODY})
    else:
        assert result.returncode in (2, 3, 5, 6, 7), result
        refused(result, result.returncode, store_root)
    assert len(s3.server.log) <= 40


# ---------------------------------------------------------------- silence


@pytest.mark.parametrize("what", ["head", "list", "get"])
@pytest.mark.parametrize("key", ["m.gguf", "m/"])
def test_sigterm_while_nobody_answers(
    aws: Modelstore, s3: S3, store_root: Path, start: Start, what: str, key: str
) -> None:
    """It ends within seconds, wherever it waits."""

    def script(request: Request, answer: Answer) -> None:
        if kind(request) == what:
            answer.silent = "stall"

    s3.fill({"m.gguf": BODY, "m/a": BODY, "m/b": OTHER})
    s3.server.script = script
    url = s3.url("nothing" if what == "list" and key == "m.gguf" else key)
    process = start(aws, "fetch", url)
    wait_until(lambda: any(kind(request) == what for request in s3.server.log), process)
    process.send_signal(signal.SIGTERM)
    assert finish(process, timeout=5).returncode == 143
    assert visible(store_root) == {}
