"""A scriptable HTTP/1.1 origin on 127.0.0.1: in-memory or generated bodies, one `Resource` of behaviours per path.

    with HttpServer() as origin:
        resource = origin.add("/model.gguf", b"...", cut_at=10, cut_times=2)
        ... fetch resource.url ...
        assert origin.bytes_sent == 3

Leaving the context closes every connection and joins every thread. Standard library only.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import hashlib
import random
import re
import socket
import ssl
import sys
import threading
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

TLS_DIR = Path(__file__).resolve().parent.parent / "data" / "tls"
TLS_CERT = TLS_DIR / "cert.pem"  # valid for 127.0.0.1 and localhost until 2124, and its own certificate authority
TLS_KEY = TLS_DIR / "key.pem"  # made for these tests, guards nothing
PIECE = 1 << 20


class Body(Protocol):
    """The bytes of one resource; read in pieces so that a large one is never in memory as a whole."""

    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def tag(self) -> str: ...  # differs when the bytes do, and costs nothing
    def read(self, start: int, stop: int) -> Iterator[bytes]: ...


class BytesBody:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    @functools.cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def tag(self) -> str:
        return self.sha256[:32]

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        for at in range(start, stop, PIECE):
            yield self.data[at : min(at + PIECE, stop)]


@dataclass(frozen=True)
class PatternBody:
    """`size` reproducible bytes out of a 1 MiB block; every block begins with its number, so swapped blocks show."""

    size: int
    seed: int = 0

    @property
    def sha256(self) -> str:
        return _pattern_sha256(self)

    @property
    def tag(self) -> str:
        return f"{self.seed:x}-{self.size:x}"

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        base = _pattern_base(self.seed)
        while start < stop:
            number, offset = divmod(start, PIECE)
            piece = (number.to_bytes(8, "big") + base[8:])[offset : offset + stop - start]
            yield piece
            start += len(piece)


@functools.lru_cache(maxsize=8)
def _pattern_base(seed: int) -> bytes:
    return random.Random(seed).randbytes(PIECE)


@functools.lru_cache(maxsize=64)
def _pattern_sha256(body: PatternBody) -> str:
    digest = hashlib.sha256()
    for piece in body.read(0, body.size):
        digest.update(piece)
    return digest.hexdigest()


@dataclass
class Request:
    """One line of the log. `body_bytes` counts a piece just before it goes out: never less than the client has."""

    method: str
    path: str  # as on the request line, query included
    headers: Mapping[str, str]  # names in lower case
    status: int = 0
    body_bytes: int = 0


@dataclass(kw_only=True)
class Resource:
    """What one path answers. Counts (`…_times`, `changes_after`) are in requests to this path; None means always."""

    url: str
    body: Body
    etag: str | None = "auto"  # "auto": a strong one made from the body; None: no ETag
    last_modified: str | None = formatdate(1_700_000_000, usegmt=True)
    headers: dict[str, str] = field(default_factory=dict)  # added to every answer, e.g. Retry-After
    auth: str | None = None  # "user:password": anything else gets 401
    head: bool = True  # False: HEAD is refused with 403, as for a presigned GET
    ranges: bool = True  # False: Range is ignored, always 200
    if_match: bool = True  # False: If-Match and If-Range are ignored
    status: int | None = None
    status_times: int | None = None
    redirect: str | None = None
    changes_after: int | None = None  # from then on `changed` and its ETag are served
    changed: Body | None = None
    gzip: bool = False  # compressed whether or not the client asked for identity
    chunked: bool = False  # no Content-Length on a 200
    content_range: str | None = None  # sent instead of the true one
    flip: int | None = None  # offset of a byte sent wrong
    flip_times: int | None = None
    cut_at: int | None = None  # the connection closes after this many bytes of a body
    cut_times: int | None = None
    hang: bool = False  # waits before the headers until `resume` is set
    pause_at: int | None = None  # waits after this many bytes, over all requests, until `resume` is set
    paused: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)
    hits: int = 0
    sent: int = 0

    def tag(self, body: Body) -> str | None:
        return f'"{body.tag}"' if self.etag == "auto" else self.etag

    def wait(self) -> None:
        self.paused.set()
        self.resume.wait()


class HttpServer:
    """The origin. `host` may be any 127.x.y.z, so that two servers are two hosts. `tls` serves https."""

    def __init__(self, host: str = "127.0.0.1", *, tls: bool = False) -> None:
        self._server = _Server((host, 0), _Handler)
        self._server.origin = self
        if tls:
            self._server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._server.tls.load_cert_chain(TLS_CERT, TLS_KEY)
        self.host, self.port = host, int(self._server.server_address[1])
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}"
        self.lock = threading.Lock()
        self.resources: dict[str, Resource] = {}
        self._log: list[Request] = []
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="origin")

    def add(self, path: str, body: Body | bytes = b"", **behaviour: Any) -> Resource:
        """Serve `body` at `path`; keywords are fields of `Resource`."""
        resource = Resource(url=self.url + path, body=BytesBody(body) if isinstance(body, bytes) else body, **behaviour)
        self.resources[path] = resource
        return resource

    @property
    def requests(self) -> list[Request]:
        with self.lock:
            return list(self._log)

    @property
    def bytes_sent(self) -> int:
        return sum(request.body_bytes for request in self.requests)

    def log(self, request: Request) -> None:
        with self.lock:
            self._log.append(request)

    def close(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        for resource in self.resources.values():
            resource.resume.set()
        self._server.hang_up()
        self._server.server_close()  # joins the handlers' threads

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
        if self._server.failures and error is None:
            raise self._server.failures[0]


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128
    origin: HttpServer
    tls: ssl.SSLContext | None = None

    def __init__(self, *args: Any) -> None:
        self.failures: list[BaseException] = []
        self._open: set[socket.socket] = set()
        self._closing = False
        self._guard = threading.Lock()
        super().__init__(*args)

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.tls:
            request = self.tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        with request:
            with self._guard:
                if self._closing:
                    return
                self._open.add(request)
            try:
                if isinstance(request, ssl.SSLSocket):
                    request.do_handshake()
                super().finish_request(request, client_address)
            finally:
                with self._guard:
                    self._open.discard(request)

    def hang_up(self) -> None:
        with self._guard:
            self._closing = True
            for connection in self._open:
                _shutdown(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if error and not isinstance(error, OSError):  # a client that went away is no news
            self.failures.append(error)


def _shutdown(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # the plain one: SSLSocket's is not thread-safe


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr; the log is `HttpServer.requests`."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_CONNECT(self) -> None:
        self._answer()  # no proxy: 404, but the log has it

    def _answer(self) -> None:
        origin = self.server.origin
        self.entry = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
        origin.log(self.entry)
        resource = origin.resources.get(self.path.partition("?")[0])
        if resource is None:
            return self._plain(HTTPStatus.NOT_FOUND)
        with origin.lock:
            resource.hits += 1
            hit = resource.hits
        if resource.hang:
            resource.wait()
        status = _refusal(resource, self.entry, hit)
        if status:
            return self._plain(status, resource.headers)
        if resource.redirect:
            return self._plain(HTTPStatus.FOUND, {**resource.headers, "Location": resource.redirect})
        return self._serve(resource, hit)

    def _plain(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        """A short error page (or nothing to a HEAD)."""
        page = f"{status} from the test server\n".encode()
        self._head(status, {"Content-Type": "text/plain", "Content-Length": str(len(page)), **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(page)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.entry.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _serve(self, resource: Resource, hit: int) -> None:
        body = resource.body
        if resource.changed and resource.changes_after is not None and hit > resource.changes_after:
            body = resource.changed
        etag = resource.tag(body)
        wanted = self.entry.headers.get("if-match")
        if resource.if_match and wanted not in (None, "*", etag):
            return self._plain(HTTPStatus.PRECONDITION_FAILED)
        headers = {"Content-Type": "application/octet-stream", **resource.headers}
        if etag:
            headers["ETag"] = etag
        if resource.last_modified:
            headers["Last-Modified"] = resource.last_modified
        if resource.ranges:
            headers["Accept-Ranges"] = "bytes"
        if resource.gzip:
            body = BytesBody(gzip.compress(b"".join(body.read(0, body.size)), mtime=0))
            headers["Content-Encoding"] = "gzip"
        return self._send(resource, body, headers, etag, hit)

    def _send(self, resource: Resource, body: Body, headers: dict[str, str], etag: str | None, hit: int) -> None:
        status, start, stop = HTTPStatus.OK, 0, body.size
        asked = self.entry.headers.get("range") if resource.ranges and self.command == "GET" else None
        if asked and (not resource.if_match or self.entry.headers.get("if-range", etag) == etag):
            found = _range(asked, body.size)
            if found is None:
                return self._plain(416, {"Content-Range": f"bytes */{body.size}"})
            status, (start, stop) = HTTPStatus.PARTIAL_CONTENT, found
            headers["Content-Range"] = resource.content_range or f"bytes {start}-{stop - 1}/{body.size}"
        chunked = resource.chunked and status == HTTPStatus.OK
        headers |= {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(stop - start)}
        self._head(status, headers)
        if self.command == "HEAD":
            return None
        return self._stream(resource, body, (start, stop), hit, chunked)

    def _stream(self, resource: Resource, body: Body, span: tuple[int, int], hit: int, chunked: bool) -> None:
        start, stop = span
        cut = resource.cut_at is not None and _applies(resource.cut_times, hit) and stop - start > resource.cut_at
        if cut and resource.cut_at is not None:
            stop, self.close_connection = start + resource.cut_at, True
        flip = resource.flip if _applies(resource.flip_times, hit) else None
        for piece in body.read(start, stop):
            if flip is not None and start <= flip < start + len(piece):
                at = flip - start
                piece = piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1 :]
            self._piece(resource, piece, chunked)
            start += len(piece)
        if chunked and not cut:
            self.wfile.write(b"0\r\n\r\n")

    def _piece(self, resource: Resource, piece: bytes, chunked: bool) -> None:
        with self.server.origin.lock:
            resource.sent += len(piece)
            full = resource.pause_at is not None and resource.sent > resource.pause_at
        if full and not resource.resume.is_set():
            resource.wait()
        self.entry.body_bytes += len(piece)
        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)


def _applies(times: int | None, hit: int) -> bool:
    return times is None or hit <= times


def _refusal(resource: Resource, request: Request, hit: int) -> int | None:
    if resource.auth is not None:
        expected = "Basic " + base64.b64encode(resource.auth.encode()).decode()
        if request.headers.get("authorization") != expected:
            return HTTPStatus.UNAUTHORIZED
    if request.method == "HEAD" and not resource.head:
        return HTTPStatus.FORBIDDEN
    return resource.status if resource.status and _applies(resource.status_times, hit) else None


def _range(header: str, size: int) -> tuple[int, int] | None:
    """[start, stop) of a single `bytes=` range; None if it cannot be satisfied."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if not match or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        return (max(0, size - int(last)), size) if size and int(last) else None
    start, stop = int(first), min(size, int(last) + 1 if last else size)
    return (start, stop) if start < stop else None
