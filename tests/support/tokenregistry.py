"""A stand-in registry for what a real one cannot be brought to do: tokens that run out, realms on other hosts, blobs
behind signed addresses that expire, wrong bytes and wrong headers. Everything it was asked is in its log.

    with TokenRegistry() as registry:
        registry.challenge = "bearer"
        image = registry.push("library/tiny", "latest", image(config(), ollama("model", b"...")))
        ... fetch registry.source("library/tiny") ...
        assert registry.asked("/token") == 1

Standard library only; leaving the context closes every connection and joins every thread.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

from tests.support.httpserver import BytesBody, PatternBody
from tests.support.registry import BYTES, Image, basic

Body = BytesBody | PatternBody
_BLOB = re.compile(r"/v2/(.+)/blobs/([^/]+)")
_MANIFEST = re.compile(r"/v2/(.+)/manifests/([^/]+)")


@dataclass
class Request:
    """One line of the log, written before it is answered. `body_bytes` is never less than the client has."""

    method: str
    url: str  # as on the request line
    headers: Mapping[str, str]  # names in lower case
    body: str = ""
    status: int = 0
    body_bytes: int = 0

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.url).query)


@dataclass
class Answer:
    """What is sent; bytes [start, stop) of the body."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: Body = field(default_factory=lambda: BytesBody(b""))
    start: int = 0
    stop: int | None = None

    @property
    def end(self) -> int:
        return self.body.size if self.stop is None else self.stop


def refusal(status: int, code: str = "DENIED", **headers: str) -> Answer:
    """An error as registries send it; a header's underscores become dashes."""
    page = json.dumps({"errors": [{"code": code, "message": "said by the stand-in", "detail": None}]}).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, {"Content-Type": "application/json", **named}, BytesBody(page))


def ranged(request: Request, body: Body, *, ranges: bool = True, etag: str | None = None) -> Answer:
    """A body as a file server gives it."""
    headers = {"Content-Type": BYTES, **({"Accept-Ranges": "bytes"} if ranges else {})}
    if etag:
        headers["ETag"] = etag
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not match or not ranges:
        return Answer(200, headers, body)
    start, stop = int(match[1]), min(body.size, int(match[2]) + 1 if match[2] else body.size)
    if start >= stop:
        return Answer(416, {"Content-Range": f"bytes */{body.size}"})
    return Answer(206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{body.size}"}, body, start, stop)


class StandIn:
    """A threaded server with a log. `host` may be any 127.x.y.z, so that two are two hosts."""

    def __init__(self, host: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None) -> None:
        self._server = _Server((host, 0), _Handler)
        self._server.owner, self._server.tls = self, tls
        self.port = int(self._server.server_address[1])
        self.host = f"{host}:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        self.lock = threading.RLock()
        self.pause_at: int | None = None  # bodies wait once this many bytes of blobs went out, until `resume` is set
        self.paused, self.resume = threading.Event(), threading.Event()
        self._sent = 0
        self._log: list[Request] = []
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="stand-in")

    def answer(self, request: Request) -> Answer:
        raise NotImplementedError

    @property
    def requests(self) -> list[Request]:
        with self.lock:
            return list(self._log)

    def of(self, part: str) -> list[Request]:
        """The requests whose path has `part` in it."""
        return [request for request in self.requests if part in request.path]

    def forget(self) -> None:
        """Begin a new log."""
        with self.lock:
            self._log.clear()

    def note(self, request: Request) -> None:
        with self.lock:
            self._log.append(request)

    def piece(self, size: int) -> None:
        """`size` bytes are about to go out."""
        with self.lock:
            self._sent += size
            wait = self.pause_at is not None and self._sent > self.pause_at
        if wait and not self.resume.is_set():
            self.paused.set()
            self.resume.wait()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self.resume.set()
        self._server.hang_up()
        self._server.server_close()  # joins the handlers' threads
        if self._server.failures and error is None:
            raise self._server.failures[0]


class Cdn(StandIn):
    """Serves blobs at `/<digest>?sig=<number>`; a signature is good for `uses` requests, then it answers 403."""

    def __init__(self, host: str = "127.0.0.2", **options: Any) -> None:
        super().__init__(host, **options)
        self.blobs: dict[str, Body] = {}
        self.uses: int | None = None
        self._used: dict[str, int] = {}
        self._signed = 0

    def sign(self, digest: str) -> str:
        with self.lock:
            self._signed += 1
            return f"{self.url}/{digest}?X-Amz-Expires=600&X-Amz-Signature=CANARYSIGNATURE{self._signed}"

    def answer(self, request: Request) -> Answer:
        (signature,) = request.query.get("X-Amz-Signature", [""])
        with self.lock:
            self._used[signature] = used = self._used.get(signature, 0) + 1
        if "authorization" in request.headers:
            return refusal(400, "TwoWaysToAuthenticate")  # as S3 does
        if not signature or (self.uses is not None and used > self.uses):
            return refusal(403, "ExpiredToken")
        body = self.blobs.get(request.path.removeprefix("/"))
        return refusal(404) if body is None else ranged(request, body, etag='"cdn"')


class TokenRegistry(StandIn):
    """The registry. Healthy and open until somebody changes a field."""

    def __init__(self, host: str = "127.0.0.1", **options: Any) -> None:
        super().__init__(host, **options)
        self.blobs: dict[str, Body] = {}
        self.manifests: dict[tuple[str, str], Image] = {}
        self.manifest_headers: dict[str, str | None] = {}  # of every manifest; None leaves one out
        self.ranges = True
        self.cdn: Cdn | None = None  # blobs are redirected to it
        self.redirect: str | None = None  # blobs are redirected there
        self.script: Callable[[Request], Answer | None] = lambda _: None  # asked before anything else
        # -- who may read
        self.challenge: Literal["", "basic", "bearer"] = ""
        self.users: dict[str, str] = {}
        self.anonymous = True  # tokens are given to those who name nobody
        self.realm = f"{self.url}/token"
        self.field = "token"  # or "access_token"
        self.uses: int | None = None  # requests that a token is good for
        self.refresh_token = ""  # what the token service takes by POST
        self.good: dict[str, int] = {}  # token -> how often it was used

    # -- for tests --------------------------------------------------------------------------------------------------

    def source(self, name: str, tag: str = "latest", userinfo: str = "") -> str:
        """The URL that modelstore fetches; `userinfo` as in a URL."""
        return f"ollama://{userinfo and userinfo + '@'}{self.host}/{name}:{tag}"

    def push(self, name: str, tag: str, pushed: Image) -> Image:
        self.blobs |= {blob.digest: BytesBody(blob.data) for blob in pushed.blobs}
        self.manifests[name, tag] = self.manifests[name, pushed.digest] = pushed
        return pushed

    def push_raw(self, name: str, raw: bytes, media_type: str = "application/vnd.oci.image.manifest.v1+json") -> Image:
        """A manifest of any bytes, as `latest`."""
        return self.push(name, "latest", Image(raw, media_type))

    # -- the protocol -----------------------------------------------------------------------------------------------

    def answer(self, request: Request) -> Answer:
        scripted = self.script(request)
        if scripted is not None:
            return scripted
        if request.path == "/token":
            return self._token(request)
        refused = self._refuse(request)
        if refused is not None:
            return refused
        if match := _MANIFEST.fullmatch(request.path):
            return self._manifest(*match.groups())
        if match := _BLOB.fullmatch(request.path):
            return self._blob(request, match[2])
        return refusal(404, "UNSUPPORTED")

    def _refuse(self, request: Request) -> Answer | None:
        given = request.headers.get("authorization", "")
        if self.challenge == "basic":
            if given in self._basics():
                return None
            return refusal(401, "UNAUTHORIZED", WWW_Authenticate='Basic realm="stand-in"')
        if self.challenge == "bearer":
            kind, _, token = given.partition(" ")
            with self.lock:
                if kind.lower() == "bearer" and token in self.good:
                    self.good[token] += 1
                    if self.uses is None or self.good[token] <= self.uses:
                        return None
            match = re.fullmatch(r"/v2/(.+)/(?:manifests|blobs)/[^/]+", request.path)
            scope = f',scope="repository:{match[1]}:pull"' if match else ""
            return refusal(
                401, "UNAUTHORIZED", WWW_Authenticate=f'Bearer realm="{self.realm}",service="stand-in"{scope}'
            )
        return None

    def _basics(self) -> set[str]:
        return {basic(f"{name}:{password}") for name, password in self.users.items()}

    def _token(self, request: Request) -> Answer:
        given = request.headers.get("authorization", "")
        if request.method == "POST":
            form = parse_qs(request.body)
            asked = (form.get("grant_type"), form.get("refresh_token"), form.get("service"))
            if not self.refresh_token or asked != (["refresh_token"], [self.refresh_token], ["stand-in"]):
                return refusal(401, "UNAUTHORIZED")
        elif given:
            if given not in self._basics():
                return refusal(401, "UNAUTHORIZED")
        elif not self.anonymous:
            return refusal(401, "UNAUTHORIZED")
        with self.lock:
            token = f"canary-token-{len(self.good) + 1}"
            self.good[token] = 0
        page = json.dumps({self.field: token, "expires_in": 300}).encode()
        return Answer(200, {"Content-Type": "application/json"}, BytesBody(page))

    def _manifest(self, name: str, reference: str) -> Answer:
        found = self.manifests.get((name, reference))
        if found is None:
            return refusal(404, "MANIFEST_UNKNOWN")
        headers = {"Content-Type": found.media_type, "Docker-Content-Digest": found.digest} | self.manifest_headers
        return Answer(200, {key: value for key, value in headers.items() if value is not None}, BytesBody(found.raw))

    def _blob(self, request: Request, digest: str) -> Answer:
        body = self.blobs.get(digest)
        if body is None:
            return refusal(404, "BLOB_UNKNOWN")
        if self.redirect:
            return Answer(307, {"Location": self.redirect})
        if self.cdn:
            self.cdn.blobs[digest] = body
            return Answer(307, {"Location": self.cdn.sign(digest)})
        return ranged(request, body, ranges=self.ranges, etag=f'"{digest}"')


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128
    owner: StandIn
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
        with request, self._tracked(request):
            if isinstance(request, ssl.SSLSocket):
                request.do_handshake()
            super().finish_request(request, client_address)

    @contextlib.contextmanager
    def _tracked(self, connection: socket.socket) -> Iterator[None]:
        with self._guard:
            if self._closing:
                raise ConnectionAbortedError
            self._open.add(connection)
        try:
            yield
        finally:
            with self._guard:
                self._open.discard(connection)

    def hang_up(self) -> None:
        with self._guard:
            self._closing = True
            for connection in self._open:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)  # the plain one: SSLSocket's is not safe

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if error and not isinstance(error, OSError):  # a client that went away is no news
            self.failures.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr; the log is `StandIn.requests`."""

    def do_GET(self) -> None:
        owner, length = self.server.owner, int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode("latin-1")
        request = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
        owner.note(request)
        answer = owner.answer(request)
        request.status = answer.status
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(answer.end - answer.start), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for piece in answer.body.read(answer.start, answer.end):
            owner.piece(len(piece))
            request.body_bytes += len(piece)
            self.wfile.write(piece)

    do_HEAD = do_POST = do_GET  # noqa: N815  the names that the base class looks for
