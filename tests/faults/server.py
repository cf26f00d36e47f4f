"""A fault server on 127.0.0.1: healthy by itself, and per request as wrong as a script says.

    with FaultServer() as server:
        resource = server.add("/m.gguf", PatternBody(SIZE))
        resource.script = lambda request, answer: answer.set("ETag", '"moved"') if request.nth > 2 else None
        ... fetch(resource.url) ...
        assert server.bytes_sent() <= resource.body.size

A script is given the request and the healthy answer, and bends the answer. Raw sockets, a thread per connection;
leaving the context closes every socket and joins every thread. Standard library only.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from tests.faults.wire import Answer, Delivery, Gone, Request, Strike, reset
from tests.support.httpserver import TLS_CERT, TLS_KEY, Body, BytesBody

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

Script = Callable[[Request, Answer], None]
LAST_MODIFIED = formatdate(1_700_000_000, usegmt=True)
#: Little is under way when a client closes, so that the bytes sent are about those that it read.
SEND_BUFFER = 128 * 1024


def tls_context(pem: Path | None = None) -> ssl.SSLContext:
    """A server's side of TLS with the tests' own certificate, or with one file of certificate and key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if pem is None:
        context.load_cert_chain(TLS_CERT, TLS_KEY)
    else:
        context.load_cert_chain(pem)
    return context


@dataclass
class Resource:
    """One path. Without a `script` it is a good server: ranges, If-Match, If-Range, 412, 416."""

    url: str
    body: Body
    etag: str | None
    last_modified: str | None = LAST_MODIFIED
    ranges: bool = True  # False: Range is ignored, always 200
    conditions: bool = True  # False: If-Match and its like are ignored
    script: Script | None = None
    expired: set[str] = field(default_factory=set)  # queries (signatures) that get 403

    def change(self, body: Body) -> None:
        """From now on it holds something else."""
        self.body, self.etag = body, f'"{body.tag}"'


class FaultServer:
    """The origin. `host` may be any 127.x.y.z, so that two servers are two hosts.

    `tls` serves new connections by that context; it may be exchanged. `at_accept` is asked what to do with the n-th
    connection, from 1, before a byte is read of it.
    """

    def __init__(self, host: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None) -> None:
        self._listener = socket.create_server((host, 0), backlog=128)
        self.host, self.port = self._listener.getsockname()[:2]
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}"
        self.tls = tls
        self.at_accept: Callable[[int], Strike] | None = None
        self.resources: dict[str, Resource] = {}
        self.connections = 0
        self.handshakes_failed = 0
        self.failures: list[BaseException] = []
        self._log: list[Request] = []
        self._active = 0
        self._lock = threading.RLock()  # a script may look at the log
        self._closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._acceptor = threading.Thread(target=self._accept, name="fault-accept")

    # -- for tests --------------------------------------------------------------------------------------------------

    def add(self, path: str, body: Body | bytes = b"", *, etag: str | None = "auto", **fields: Any) -> Resource:
        """Serve `body` at `path`; an etag of "auto" is a strong one made from the body."""
        body = BytesBody(body) if isinstance(body, bytes) else body
        etag = f'"{body.tag}"' if etag == "auto" else etag
        self.resources[path] = resource = Resource(self.url + path, body, etag, **fields)
        return resource

    @property
    def log(self) -> list[Request]:
        """All requests so far, in the order in which they came."""
        with self._lock:
            return list(self._log)

    def requests(self, path: str) -> list[Request]:
        return [request for request in self.log if request.path == path]

    def bytes_sent(self, *paths: str) -> int:
        return sum(request.body_bytes for request in self.log if not paths or request.path in paths)

    def forget(self) -> None:
        """Begin a new log."""
        with self._lock:
            self._log.clear()

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
        if self.failures and error is None:
            raise self.failures[0]

    def close(self) -> None:
        self._closing.set()
        _shutdown(self._listener)  # wakes accept()
        if self._acceptor.is_alive():
            self._acceptor.join()
        self._listener.close()
        with self._lock:
            connections, threads = list(self._open), list(self._threads)
        for connection in connections:
            _shutdown(connection)
        for thread in threads:
            thread.join()

    # -- connections ------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.connections += 1
                thread = threading.Thread(target=self._run, args=(connection, self.connections), name="fault-server")
                self._threads.add(thread)
            thread.start()

    def _run(self, connection: socket.socket, number: int) -> None:
        try:
            with contextlib.suppress(OSError, Gone), connection:
                self._converse(connection, number)
        except Exception as error:  # noqa: BLE001  shown by __exit__
            self.failures.append(error)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _converse(self, connection: socket.socket, number: int) -> None:
        with self._tracked(connection):
            strike = self.at_accept(number) if self.at_accept else ""
            if strike == "reset":
                reset(connection)
            if strike == "stall":
                self._closing.wait()
            if not strike and self.tls is None:
                self._serve(connection, number)
            if strike or self.tls is None:
                return
        secured = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        with secured, self._tracked(secured):
            try:
                secured.do_handshake()
            except OSError:
                with self._lock:
                    self.handshakes_failed += 1
                raise
            self._serve(secured, number)

    @contextlib.contextmanager
    def _tracked(self, connection: socket.socket) -> Any:
        with self._lock:
            if self._closing.is_set():
                raise Gone
            self._open.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(connection)

    def _serve(self, connection: socket.socket, number: int) -> None:
        with connection.makefile("rb") as stream:
            while (request := self._read(stream, number)) is not None:
                try:
                    if not Delivery(connection, request, self._closing).send(self._answer(request)):
                        return
                finally:
                    with self._lock:
                        self._active -= 1
                        request.ended = time.monotonic()

    def _read(self, stream: BinaryIO, connection: int) -> Request | None:
        line = stream.readline(8192).decode("latin-1").split()
        if len(line) != 3:
            return None
        headers: dict[str, str] = {}
        while (text := stream.readline(8192).decode("latin-1").strip()) != "":
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        path, _, query = line[1].partition("?")
        with self._lock:
            self._active += 1
            nth = sum(request.path == path for request in self._log) + 1
            request = Request(
                len(self._log) + 1, nth, connection, line[0], path, query, headers, self._active, time.monotonic()
            )
            self._log.append(request)
        return request

    def _answer(self, request: Request) -> Answer:
        resource = self.resources.get(request.path)
        if resource is None:
            answer = Answer(404, [], BytesBody(b""))
            answer.replace(404, b"nothing here\n")
            return answer
        with self._lock:  # scripts count and decide; one at a time
            answer = healthy(resource, request)
            request.start, request.stop = answer.start, answer.stop
            if resource.script:
                resource.script(request, answer)
            request.genuine = answer.body is resource.body
        return answer


def healthy(resource: Resource, request: Request) -> Answer:
    """What a good server answers (RFC 9110 §13 and §14)."""
    size, asked = resource.body.size, request.headers.get("range")
    if request.query in resource.expired:
        answer = Answer(403, [], resource.body)
        answer.replace(403, b"<Error><Code>ExpiredToken</Code></Error>", Content_Type="application/xml")
        return answer
    answer = Answer(200, [("Date", formatdate(usegmt=True))], resource.body, 0, size)
    if resource.etag:
        answer.set("ETag", resource.etag)
    if resource.last_modified:
        answer.set("Last-Modified", resource.last_modified)
    answer.set("Content-Type", "application/octet-stream")
    if resource.conditions and _fails(resource, request):
        answer.replace(412)
        return answer
    if resource.ranges:
        answer.set("Accept-Ranges", "bytes")
    if asked and resource.ranges and _unchanged(resource, request):
        found = parse_range(asked, size)
        if found is None:
            answer.replace(416, Content_Range=f"bytes */{size}")
            return answer
        answer.status, (answer.start, answer.stop) = 206, found
        answer.set("Content-Range", f"bytes {answer.start}-{answer.stop - 1}/{size}")
    answer.set("Content-Length", str(answer.stop - answer.start))
    return answer


def _fails(resource: Resource, request: Request) -> bool:
    """Whether a condition of the request does not hold."""
    tag, since = request.headers.get("if-match"), request.headers.get("if-unmodified-since")
    if tag is not None:
        return tag not in ("*", resource.etag) or tag.startswith("W/")
    return since is not None and since != resource.last_modified


def _unchanged(resource: Resource, request: Request) -> bool:
    """Whether If-Range, if there is one, lets a range be answered."""
    given = request.headers.get("if-range")
    return given is None or not resource.conditions or given in (resource.etag, resource.last_modified)


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """[start, stop) of a single `bytes=` range; None if it cannot be satisfied."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", header.strip())
    if match is None:
        return None
    start, stop = int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
    return (start, stop) if start < stop else None


def _shutdown(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # the plain one: SSLSocket's is not thread-safe
