"""S3 on 127.0.0.1: moto for what S3 means, and in front of it a server that checks, records and breaks.

    with moto() as upstream, S3Server(upstream) as server:
        server.script = lambda request, answer: error(answer, 503, "SlowDown") if request.nth == 1 else None
        ... a client with AWS_ENDPOINT_URL=server.url ...

moto believes any signature and knows no requester pays; the server in front knows the keys it accepts, the region of
its buckets, and which buckets charge the requester. Everything it was asked is in `server.log`.
"""

from __future__ import annotations

import http.client
import itertools
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote, urlsplit
from xml.sax.saxutils import escape

from tests.faults.server import FaultServer, Script
from tests.faults.wire import Answer, Request
from tests.support import sha256_of
from tests.support.httpserver import BytesBody
from tests.support.sigv4 import Key, Refusal, check, is_signed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ACCESS_KEY = "AKIACANARYACCESSKEY0"
SECRET_KEY = "canary/secret+key/of/forty/characters/00"
REGION = "us-east-1"
# It ends when its standard input does, so that it never outlives the tests, however they end.
PROGRAM = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
SKIPPED = ("connection", "server", "date", "transfer-encoding", "content-length", "keep-alive")
_NUMBERS = itertools.count(1)


def hashed(files: dict[str, bytes]) -> dict[str, str]:
    """What `tests.support.digests` says of these files."""
    return {path: sha256_of(body) for path, body in files.items()}


@contextmanager
def moto() -> Iterator[str]:
    """A moto server in a process of its own; gives its base URL."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MOTO_", "PYTHONWARN"))}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**kept, "S3_UPLOAD_PART_MIN_SIZE": "1024", "AWS_EC2_METADATA_DISABLED": "true"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            assert port, "moto did not start"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def error(answer: Answer, status: int, code: str, message: str = "no", **fields: str) -> None:
    """Answer as S3 does when something is wrong; `fields` are further elements, a header's name becomes a header."""
    headers = {name: value for name, value in fields.items() if name.lower().startswith(("x_amz", "retry"))}
    inner = {"Code": code, "Message": message, **{k: v for k, v in fields.items() if k not in headers}, "HostId": "h"}
    page = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in inner.items())
    page = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{page}</Error>'
    answer.replace(status, page.encode(), Content_Type="application/xml", **headers)


def kind(request: Request) -> str:
    """What a request is for: "list", "head", "get" or "other"."""
    if request.method == "HEAD":
        return "head"
    if request.method != "GET" or request.path.count("/") < 1:
        return "other"
    listed = re.search(r"(^|&)(list-type=2|prefix=|versions)", request.query)
    return "list" if listed else "get"


def on_data(times: int | None, bend: Callable[[Request, Answer], Any]) -> Script:
    """Bend the first so many answers with an object's bytes; None for all."""
    bent = 0

    def script(request: Request, answer: Answer) -> None:
        nonlocal bent
        if kind(request) == "get" and answer.status in (200, 206) and (times is None or bent < times):
            bent += 1
            bend(request, answer)

    return script


class S3Server(FaultServer):
    """The server in front. Without a `script` it is S3 as far as the tests go.

    ``keys``: those that may ask; a request without a signature passes only if ``anonymous``. ``payers``: buckets that
    are read only by who says that he pays. ``page``: keys in a listing at most. ``ignored``: request headers that it
    does not understand, such as "if-match" or "range". ``expired``: names of keys that have run out.
    """

    def __init__(self, upstream: str, **fields: Any) -> None:
        super().__init__(**fields)
        parts = urlsplit(upstream)
        self._upstream = (str(parts.hostname), int(parts.port or 80))
        self._bodies: dict[int, bytes] = {}
        self.script: Script | None = None
        self.keys = {ACCESS_KEY: Key(SECRET_KEY)}
        self.region = REGION
        self.anonymous = False
        self.payers: set[str] = set()
        self.page: int | None = None
        self.ignored: set[str] = set()
        self.expired: set[str] = set()

    @property
    def data_log(self) -> list[Request]:
        """The requests that got bytes of objects."""
        return [request for request in self.log if kind(request) == "get" and request.status in (200, 206)]

    @property
    def others(self) -> list[Request]:
        """The requests that did not."""
        return [request for request in self.log if request not in self.data_log]

    @property
    def data_sent(self) -> int:
        return sum(request.body_bytes for request in self.data_log)

    def _read(self, stream: BinaryIO, connection: int) -> Request | None:
        request = super()._read(stream, connection)
        length = int(request.headers.get("content-length", "0")) if request else 0
        if request and length:
            self._bodies[request.number] = stream.read(length)
        return request

    def _answer(self, request: Request) -> Answer:
        refusal = self._refusal(request)
        if refusal:
            answer = Answer(refusal.status, [], BytesBody(b""))
            fields = {"Region": self.region} if refusal.code == "AuthorizationHeaderMalformed" else {}
            error(answer, refusal.status, refusal.code, refusal.message, x_amz_bucket_region=self.region, **fields)
        else:
            answer = self._forward(request)
        with self._lock:  # scripts count and decide; one at a time
            if self.script:
                self.script(request, answer)
        return answer

    def _refusal(self, request: Request) -> Refusal | None:
        if request.method == "POST":  # the token service: web identities are not signed
            return None
        if not is_signed(request.query, request.headers):
            return None if self.anonymous else Refusal(403, "AccessDenied", "Access Denied")
        refusal = check(request.method, request.path, request.query, request.headers, self.keys, self.region)
        if any(f"{name}/" in unquote(f"{request.query} {request.headers}") for name in self.expired):
            return Refusal(400, "ExpiredToken", "The provided token has expired.")
        bucket = request.path.split("/")[1]
        if refusal is None and bucket in self.payers:
            pays = request.headers.get("x-amz-request-payer") or "x-amz-request-payer=requester" in request.query
            return None if pays else Refusal(403, "AccessDenied", "Access Denied")
        return refusal

    def _forward(self, request: Request) -> Answer:
        query = request.query
        if self.page and kind(request) == "list":
            query = re.sub(r"(^|&)max-keys=\d+", "", query) + f"&max-keys={self.page}"
        connection = http.client.HTTPConnection(*self._upstream, timeout=60)
        try:
            target = f"{request.path}?{query}" if query else request.path
            connection.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name not in {"connection", *self.ignored}:
                    connection.putheader(name, value)
            connection.endheaders(self._bodies.pop(request.number, None))
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        if request.method == "POST":
            self._learn(data)
        answer = Answer(response.status, [], BytesBody(data), 0, len(data))
        answer.headers = [(name, value) for name, value in response.getheaders() if name.lower() not in SKIPPED]
        length = response.getheader("Content-Length", "0") if request.method == "HEAD" else str(len(data))
        answer.set("Content-Length", length)
        found = re.match(r"bytes (\d+)-(\d+)/", response.getheader("Content-Range") or "")
        request.start, request.stop = (int(found[1]), int(found[2]) + 1) if found else (0, len(data))
        return answer

    def _learn(self, data: bytes) -> None:
        """Keys that the token service gave out are good."""
        text = data.decode()
        names = ("AccessKeyId", "SecretAccessKey", "SessionToken")
        found = [re.search(rf"<{name}>(.*?)</{name}>", text) for name in names]
        if all(found):
            name, secret, token = (match[1] for match in found if match)
            self.keys[name] = Key(secret, token)


@dataclass(frozen=True)
class S3:
    """A bucket of one test: `client` talks to moto, the tested program to `server`."""

    server: S3Server
    client: Any
    bucket: str
    env: dict[str, str]

    def put(self, key: str, body: bytes = b"", **fields: Any) -> Any:
        return self.client.put_object(Bucket=self.bucket, Key=key, Body=body, **fields)

    def fill(self, files: dict[str, bytes], prefix: str = "") -> None:
        for path, body in files.items():
            self.put(prefix + path, body)

    def url(self, key: str = "") -> str:
        return f"s3://{self.bucket}/{key}"


def environment(url: str, directory: Path) -> dict[str, str]:
    """The variables of a client that knows one pair of keys, and nothing of this machine's own."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(directory / "aws-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(directory / "aws-credentials"),
        "NO_PROXY": "127.0.0.1",
    }


def new_client(url: str) -> Any:
    """A boto3 client that talks to moto itself, whatever the environment says."""
    import boto3
    from botocore.config import Config

    keys = {"aws_access_key_id": "setup", "aws_secret_access_key": "setup", "region_name": REGION}
    config = Config(s3={"addressing_style": "path"}, max_pool_connections=8, proxies={})
    return boto3.session.Session(**keys).client("s3", endpoint_url=url, config=config)


def new_bucket(client: Any) -> str:
    bucket = f"models-{os.getpid()}-{next(_NUMBERS)}"
    client.create_bucket(Bucket=bucket)
    return bucket
