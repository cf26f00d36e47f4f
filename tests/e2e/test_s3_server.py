"""The S3 of the tests is one that the real client accepts, and that refuses what S3 refuses."""

from __future__ import annotations

import urllib.error
import urllib.request
from contextlib import closing
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.support.s3 import ACCESS_KEY, REGION, S3, SECRET_KEY, error, kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEYS = ["a", "a b", "a+b", "a%20b", "ü/ß", "(x)=y&z;~*'!", "#1?", "π"]


@pytest.fixture
def connect(s3: S3) -> Iterator[Callable[..., Any]]:
    """`connect(key, secret)`: a real client of the server in front."""
    clients: list[Any] = []

    def make(key: str = ACCESS_KEY, secret: str = SECRET_KEY, region: str = REGION, **config: Any) -> Any:
        session = boto3.session.Session(aws_access_key_id=key, aws_secret_access_key=secret, region_name=region)
        style = {"s3": {"addressing_style": "path"}, "retries": {"total_max_attempts": 1}, "proxies": {}}
        clients.append(session.client("s3", endpoint_url=s3.server.url, config=Config(**{**style, **config})))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def get(url: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(url, method=method, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read()


@pytest.mark.parametrize("key", KEYS)
def test_signed_requests_and_signed_urls_pass(s3: S3, connect: Callable[..., Any], key: str) -> None:
    s3.put(key, b"body of it")
    client = connect(signature_version="s3v4")
    with closing(client.get_object(Bucket=s3.bucket, Key=key)["Body"]) as body:
        assert body.read() == b"body of it"
    assert [found["Key"] for found in client.list_objects_v2(Bucket=s3.bucket)["Contents"]] == [key]
    url = client.generate_presigned_url("get_object", Params={"Bucket": s3.bucket, "Key": key})
    assert get(url, Range="bytes=5-6") == (206, b"of")
    assert get(url + "0")[0] == 403
    assert get(url, method="HEAD")[0] == 403, "it is signed for GET"
    assert get(url, **{"x-amz-checksum-mode": "ENABLED"})[0] == 403, "not signed"
    assert [kind(request) for request in s3.server.log] == ["get", "list", "get", "get", "head", "get"]
    assert s3.server.data_sent == len(b"body of it") + 2


def test_conditions(s3: S3, connect: Callable[..., Any]) -> None:
    tag = s3.put("m", b"one")["ETag"]
    client = connect()
    client.get_object(Bucket=s3.bucket, Key="m", Range="bytes=0-0", IfMatch=tag)["Body"].close()
    s3.put("m", b"two")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.get_object(Bucket=s3.bucket, Key="m", Range="bytes=0-0", IfMatch=tag)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"key": "AKIANOBODY"}, "InvalidAccessKeyId"),
        ({"secret": "wrong"}, "SignatureDoesNotMatch"),
        ({"signature_version": UNSIGNED}, "AccessDenied"),
        ({"signature_version": "s3"}, "AuthorizationHeaderMalformed"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refusals(s3: S3, connect: Callable[..., Any], fields: dict[str, Any], code: str) -> None:
    s3.put("m", b"body")
    with pytest.raises(ClientError) as caught:
        connect(**fields).list_objects_v2(Bucket=s3.bucket)
    assert caught.value.response["Error"]["Code"] == code


def test_requester_pays(s3: S3, connect: Callable[..., Any]) -> None:
    s3.put("m", b"body")
    s3.server.payers.add(s3.bucket)
    client = connect(signature_version="s3v4")
    with pytest.raises(ClientError, match="AccessDenied"):
        client.get_object(Bucket=s3.bucket, Key="m")
    client.get_object(Bucket=s3.bucket, Key="m", RequestPayer="requester")["Body"].close()


def test_scripts_bend_answers(s3: S3, connect: Callable[..., Any]) -> None:
    s3.put("m", b"body")
    s3.server.script = lambda request, answer: error(answer, 503, "SlowDown") if request.nth == 1 else None
    client = connect()
    with pytest.raises(ClientError, match="SlowDown"):
        client.get_object(Bucket=s3.bucket, Key="m")
    client.get_object(Bucket=s3.bucket, Key="m")["Body"].close()


def test_pages(s3: S3, connect: Callable[..., Any]) -> None:
    s3.fill({f"{number:02}": b"" for number in range(10)})
    s3.server.page = 3
    pages = connect().get_paginator("list_objects_v2").paginate(Bucket=s3.bucket)
    assert [found["Key"] for page in pages for found in page["Contents"]] == [f"{number:02}" for number in range(10)]
    assert len(s3.server.log) == 4
