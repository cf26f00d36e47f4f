"""s3://: the right bytes or a named error, whatever happens to the objects; going on where a fetch was killed."""

from __future__ import annotations

import re
import shutil
from base64 import b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import Modelstore, Result, blob, digests, sha256_of, visible, wait_until
from tests.support.httpserver import PatternBody
from tests.support.s3 import S3, hashed, kind, on_data

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
BIG_OTHER = b"".join(PatternBody(len(BIG), seed=1).read(0, len(BIG)))
WRONG = sha256(b"something else").hexdigest()


def base64_of(hex_digest: str) -> str:
    return b64encode(bytes.fromhex(hex_digest)).decode()


def with_headers(**headers: str) -> Script:
    """Objects have these headers too; underscores become dashes."""

    def script(request: Request, answer: Answer) -> None:
        if kind(request) in ("head", "get") and answer.status < 300:
            for name, value in headers.items():
                answer.set(name.replace("_", "-"), value)

    return script


def refused(result: Result, code: int, root: Path) -> None:
    result.failed(code)
    assert visible(root) == {}


# ---------------------------------------------------------------- ranges


def test_every_range_is_signed_and_carries_the_etag(aws: Modelstore, s3: S3, store_root: Path) -> None:
    tag = s3.put("m.gguf", BIG)["ETag"]
    assert digests(aws("fetch", s3.url("m.gguf")).path) == hashed({"m.gguf": BIG})
    ranges = [request for request in s3.server.data_log if request.body_bytes > 1]
    assert len(ranges) >= 3
    assert {request.headers.get("if-match") for request in ranges} == {tag}
    assert {request.headers["accept-encoding"] for request in ranges} == {"identity"}
    assert {request.status for request in ranges} == {206}
    assert max((request.start, request.stop) for request in ranges)[1] == len(BIG)
    assert s3.server.data_sent <= len(BIG) + 4096


@pytest.mark.parametrize("connections", ["1", "4"])
@pytest.mark.parametrize("versions", [False, True], ids=["plain", "versioned"])
def test_overwritten_in_the_middle(aws: Modelstore, s3: S3, store_root: Path, connections: str, versions: bool) -> None:
    if versions:
        s3.client.put_bucket_versioning(Bucket=s3.bucket, VersioningConfiguration={"Status": "Enabled"})
    s3.put("m.gguf", BIG)
    s3.server.script = on_data(1, lambda request, answer: s3.put("m.gguf", BIG_OTHER))
    result = aws("fetch", "--connections", connections, s3.url("m.gguf"))
    if versions and result.returncode == 0:
        assert digests(result.path) == hashed({"m.gguf": BIG}), "of a pinned version, all of it"
    elif connections == "4" and result.returncode == 0:
        assert digests(result.path) == hashed({"m.gguf": BIG}), "every range was asked for in time"
    else:
        refused(result, 6, store_root)
        assert digests(aws("fetch", s3.url("m.gguf")).path) == hashed({"m.gguf": BIG_OTHER})


@pytest.mark.parametrize("ignored", [{"if-match"}, {"if-match", "if-range"}], ids=len)
def test_overwritten_where_conditions_are_ignored(aws: Modelstore, s3: S3, store_root: Path, ignored: set[str]) -> None:
    s3.server.ignored = ignored
    s3.put("m.gguf", BIG)
    s3.server.script = on_data(1, lambda request, answer: s3.put("m.gguf", BIG_OTHER))
    refused(aws("fetch", "--connections", "1", s3.url("m.gguf")), 6, store_root)


def test_overwritten_between_listing_and_reading(aws: Modelstore, s3: S3, store_root: Path) -> None:
    s3.fill({"a": BODY, "b": BODY}, "m/")

    def script(request: Request, answer: Answer) -> None:
        if kind(request) == "list":
            s3.put("m/b", OTHER)

    s3.server.script = script
    result = aws("fetch", s3.url("m/"))
    if result.returncode == 0:
        assert digests(result.path) == hashed({"a": BODY, "b": OTHER}), "as it is when it is read"
    else:
        refused(result, 6, store_root)


def test_deleted_in_the_middle(aws: Modelstore, s3: S3, store_root: Path) -> None:
    s3.put("m.gguf", BIG)
    s3.server.script = on_data(1, lambda request, answer: s3.client.delete_object(Bucket=s3.bucket, Key="m.gguf"))
    result = aws("fetch", "--connections", "1", s3.url("m.gguf"))
    assert result.returncode in (3, 6), result
    refused(result, result.returncode, store_root)


def test_ranges_that_are_not_understood(aws: Modelstore, s3: S3) -> None:
    s3.server.ignored = {"range"}
    s3.put("m.gguf", BIG)
    assert digests(aws("fetch", s3.url("m.gguf")).path) == hashed({"m.gguf": BIG})


# ---------------------------------------------------------------- digests


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize(("key", "body"), [("m.gguf", BODY), ("m/", BODY), ("m.gguf", BIG)], ids=["one", "tree", "big"])
def test_digest_in_the_metadata(aws: Modelstore, s3: S3, store_root: Path, key: str, right: bool, body: bytes) -> None:
    metadata = {"sha256": sha256_of(body) if right else WRONG}
    s3.put("m.gguf", body, Metadata=metadata)
    s3.put("m/m.gguf", body, Metadata=metadata)
    result = aws("fetch", s3.url(key))
    if right:
        assert digests(result.path) == hashed({"m.gguf": body})
    else:
        refused(result, 7, store_root)


@pytest.mark.parametrize("key", ["m.gguf", "m/"])
@pytest.mark.parametrize("right", [True, False])
def test_checksum_of_the_whole_object(aws: Modelstore, s3: S3, store_root: Path, key: str, right: bool) -> None:
    for name in ("m.gguf", "m/m.gguf"):
        s3.put(name, BODY, ChecksumAlgorithm="SHA256")
    if not right:
        s3.server.script = with_headers(x_amz_checksum_sha256=base64_of(WRONG), x_amz_checksum_type="FULL_OBJECT")
    result = aws("fetch", s3.url(key))
    if right:
        assert digests(result.path) == hashed({"m.gguf": BODY})
    else:
        refused(result, 7, store_root)


def test_the_checksum_comes_before_the_metadata(aws: Modelstore, s3: S3, store_root: Path) -> None:
    """The one was computed by S3, the other is what somebody wrote."""
    s3.put("m.gguf", BODY, Metadata={"sha256": sha256_of(BODY)})
    s3.server.script = with_headers(x_amz_checksum_sha256=base64_of(WRONG))
    refused(aws("fetch", s3.url("m.gguf")), 7, store_root)


NO_PROMISE = [
    {"x-amz-checksum-sha256": f"{base64_of(WRONG)}-3", "x-amz-checksum-type": "COMPOSITE"},
    {"x-amz-checksum-sha256": f"{base64_of(WRONG)}-3"},
    {"x-amz-checksum-sha256": base64_of(WRONG), "x-amz-checksum-type": "COMPOSITE"},
    {"x-amz-checksum-sha256": "nonsense"},
    {"x-amz-checksum-sha256": ""},
    {"x-amz-checksum-sha256": "YWJj"},
    {"x-amz-checksum-crc32": "AAAAAA==", "x-amz-checksum-type": "FULL_OBJECT"},
    {"x-amz-meta-sha256": "abc"},
    {"x-amz-meta-sha256": "z" * 64},
    {"x-amz-meta-sha256": ""},
    {"x-amz-meta-sha-256": WRONG},
    {"x-amz-content-sha256": WRONG},
]


def test_headers_that_promise_nothing(aws: Modelstore, s3: S3) -> None:
    """A checksum of checksums, and what is no SHA-256, are not compared with anything."""

    def script(request: Request, answer: Answer) -> None:
        if kind(request) in ("head", "get"):
            for name, value in NO_PROMISE[int(request.path.rpartition("/")[2])].items():
                answer.set(name, value)

    files = {str(number): b"body of %d" % number for number in range(len(NO_PROMISE))}
    s3.fill(files, "m/")
    s3.server.script = script
    assert digests(aws("fetch", s3.url("m/")).path) == hashed(files)
    for number in (0, 2):
        assert digests(aws("fetch", s3.url(f"m/{number}")).path) == hashed({str(number): files[str(number)]})


def test_a_composite_checksum_and_metadata(aws: Modelstore, s3: S3, store_root: Path) -> None:
    """The metadata counts where the checksum is none of the whole."""
    composite = {"x_amz_checksum_sha256": f"{base64_of(WRONG)}-3", "x_amz_checksum_type": "COMPOSITE"}
    s3.put("m.gguf", BODY, Metadata={"sha256": WRONG})
    s3.server.script = with_headers(**composite)
    refused(aws("fetch", s3.url("m.gguf")), 7, store_root)


def test_uploaded_in_parts_with_checksums(aws: Modelstore, s3: S3) -> None:
    """By the real client. moto gives the composite checksum without the "-3" that says so: the ETag still has it."""
    target: dict[str, Any] = {"Bucket": s3.bucket, "Key": "m.gguf"}
    upload = s3.client.create_multipart_upload(**target, ChecksumAlgorithm="SHA256")["UploadId"]
    parts = []
    for number in range(3):
        piece = BIG[number * CHUNK : (number + 1) * CHUNK]
        part = s3.client.upload_part(
            **target, UploadId=upload, PartNumber=number + 1, Body=piece, ChecksumAlgorithm="SHA256"
        )
        parts.append({"PartNumber": number + 1, "ETag": part["ETag"], "ChecksumSHA256": part["ChecksumSHA256"]})
    s3.client.complete_multipart_upload(**target, UploadId=upload, MultipartUpload={"Parts": parts})
    assert digests(aws("fetch", s3.url("m.gguf")).path) == hashed({"m.gguf": BIG})


def test_pins(aws: Modelstore, s3: S3, store_root: Path) -> None:
    s3.put("m.gguf", BODY)
    s3.put("m/m.gguf", BODY)
    refused(aws("fetch", s3.url(f"m.gguf#sha256={WRONG}")), 7, store_root)
    aws("fetch", s3.url(f"m/#sha256={sha256_of(BODY)}")).failed(7)
    assert not any(path.startswith(("models", ".modelstore/refs")) for path in visible(store_root))
    found = aws("fetch", "--json", s3.url(f"m.gguf#sha256={sha256_of(BODY)}")).json
    pin = found["manifest"].removeprefix("sha256:")
    assert digests(aws("fetch", s3.url(f"m/#sha256={pin}")).path) == hashed({"m.gguf": BODY})


# ---------------------------------------------------------------- trust on first use


@pytest.mark.parametrize("key", ["m.gguf", "m/"])
def test_a_remembered_object_that_changed(aws: Modelstore, s3: S3, store_root: Path, key: str) -> None:
    s3.fill({"m.gguf": BODY, "m/m.gguf": BODY})
    url = s3.url(key)
    first = aws("fetch", url).path
    s3.fill({"m.gguf": OTHER, "m/m.gguf": OTHER})
    assert digests(aws("fetch", url).path) == hashed({"m.gguf": BODY}), "what is there stands"
    blob(store_root, sha256_of(BODY)).unlink()
    shutil.rmtree(first)
    aws("fetch", url).failed(6)
    assert digests(aws("fetch", "--refresh", url).path) == hashed({"m.gguf": OTHER})
    assert digests(aws("fetch", url).path) == hashed({"m.gguf": OTHER})


def test_a_lost_blob_is_fetched_again(aws: Modelstore, s3: S3, store_root: Path) -> None:
    s3.fill({"a": BODY, "b": OTHER}, "m/")
    first = aws("fetch", s3.url("m/")).path
    blob(store_root, sha256_of(BODY)).unlink()
    shutil.rmtree(first)
    s3.server.forget()
    assert digests(aws("fetch", s3.url("m/")).path) == hashed({"a": BODY, "b": OTHER})
    assert s3.server.data_sent <= len(BODY) + 4096, "only that one"


@pytest.mark.parametrize("key", ["m.gguf", "m/"])
def test_refresh_of_what_has_not_changed(aws: Modelstore, s3: S3, key: str) -> None:
    s3.fill({"m.gguf": BODY, "m/m.gguf": BODY})
    first = aws("fetch", s3.url(key)).path
    s3.server.forget()
    found = aws("fetch", "--refresh", "--json", s3.url(key)).json
    assert found["path"] == str(first)
    assert found["bytes"]["origin"] == 0
    assert s3.server.log, "it was asked"
    assert s3.server.data_sent <= 4096


# ---------------------------------------------------------------- killed


def journalled(root: Path) -> int:
    """How many chunks the journals of staged files name."""
    folder = root / ".modelstore" / "ingest"
    files = [path for path in folder.rglob("*") if path.suffix == ".journal"] if folder.is_dir() else []
    return sum(len(re.findall(rb"(?m)^\d+ [0-9a-f]{32}$", path.read_bytes())) for path in files)


def test_goes_on_after_a_kill(aws: Modelstore, s3: S3, store_root: Path, start: Start) -> None:
    s3.put("m.gguf", BIG)

    def script(request: Request, answer: Answer) -> None:
        if kind(request) == "get" and request.start == 2 * CHUNK:
            answer.strike, answer.at = "stall", 1000

    s3.server.script = script
    process = start(aws, "fetch", s3.url("m.gguf"))
    wait_until(lambda: journalled(store_root) >= 2, process)
    process.kill()
    process.wait()
    assert visible(store_root) == {}
    s3.server.script = None
    s3.server.forget()
    found = aws("fetch", "--json", s3.url("m.gguf")).json
    assert sha256_of(blob(store_root, sha256_of(BIG))) == sha256_of(BIG)
    assert found["bytes"]["reused"] == 2 * CHUNK
    assert s3.server.data_sent <= len(BIG) - 2 * CHUNK + 4096
