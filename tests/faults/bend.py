"""The ways in which a single answer is bent: each takes a `Blow` and changes its answer."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import TYPE_CHECKING

from tests.faults.server import FaultServer, Resource, healthy
from tests.support.httpserver import BytesBody, PatternBody

if TYPE_CHECKING:
    from tests.faults.wire import Answer, Request, Strike

HTML = b"<!doctype html><title>Welcome</title><p>Accept the terms of this network." + b"<br>" * 100


@dataclass
class Blow:
    """One struck request. `position` is the offset in the file at which the phase puts the fault."""

    server: FaultServer
    resource: Resource
    request: Request
    answer: Answer
    position: int


Bend = Callable[[Blow], None]


def body(strike: Strike) -> Bend:
    """The body ends, or stops flowing, at the position."""

    def bend(blow: Blow) -> None:
        blow.answer.strike, blow.answer.at = strike, blow.position

    return bend


def instead_of_head(strike: Strike) -> Bend:
    def bend(blow: Blow) -> None:
        blow.answer.silent = strike

    return bend


def status(code: int, page: bytes = b"no\n", **headers: str) -> Bend:
    """An error page with these headers."""

    def bend(blow: Blow) -> None:
        blow.answer.replace(code, page, **headers)

    return bend


def s3_error(code: int, name: str) -> Bend:
    page = f"<?xml version='1.0'?><Error><Code>{name}</Code><Message>as S3 says it</Message></Error>".encode()
    return status(code, page, Content_Type="application/xml")


def retry_date(seconds: float) -> Bend:
    """503 with a date so many seconds ahead."""

    def bend(blow: Blow) -> None:
        blow.answer.replace(503, Retry_After=formatdate(time.time() + seconds, usegmt=True))

    return bend


def header(name: str, *values: str) -> Bend:
    """A header with other values; with none it is left out."""

    def bend(blow: Blow) -> None:
        blow.answer.set(name, *values)

    return bend


def ignore_range(blow: Blow) -> None:
    """200 and the whole file, whatever was asked."""
    answer = blow.answer
    answer.status, answer.start, answer.stop = 200, 0, answer.body.size
    answer.set("Content-Range")
    answer.set("Accept-Ranges")
    answer.set("Content-Length", str(answer.body.size))


# -- 206 -----------------------------------------------------------------------------------------------------------


def content_range(form: str) -> Bend:
    """Another Content-Range: `form` is filled with `first`, `last` and `size`; the bytes are those asked for."""

    def bend(blow: Blow) -> None:
        answer = blow.answer
        first, last, size = answer.start, answer.stop - 1, answer.body.size
        answer.set("Content-Range", form.format(first=first, last=last, size=size, beyond=size + 9, more=size + 5))

    return bend


def other_range(shift: int) -> Bend:
    """Claims and sends a range that is as long, but begins elsewhere."""

    def bend(blow: Blow) -> None:
        answer, size = blow.answer, blow.answer.body.size
        length = answer.stop - answer.start
        answer.start += shift if answer.start + shift + length <= size else -shift
        answer.stop = answer.start + length
        answer.set("Content-Range", f"bytes {answer.start}-{answer.stop - 1}/{size}")

    return bend


def resize(*, limit: int | None = None, more: int = 0) -> Bend:
    """A consistent 206 that is at most `limit` bytes long, or `more` bytes longer than asked."""

    def bend(blow: Blow) -> None:
        answer, size = blow.answer, blow.answer.body.size
        wanted = answer.stop if limit is None else min(answer.stop, answer.start + limit)
        answer.stop = min(size, wanted + more)
        answer.set("Content-Range", f"bytes {answer.start}-{answer.stop - 1}/{size}")
        answer.set("Content-Length", str(answer.stop - answer.start))

    return bend


def multipart(*, disguised: bool) -> Bend:
    """multipart/byteranges; disguised, it also has the Content-Range and the length of what was asked for."""

    def bend(blow: Blow) -> None:
        answer = blow.answer
        first, length, size = answer.start, answer.stop - answer.start, answer.body.size
        part = f"--X\r\nContent-Type: text/plain\r\nContent-Range: bytes {first}-{first + length - 1}/{size}\r\n\r\n"
        data = part.encode() + b"".join(answer.body.read(answer.start, answer.stop)) + b"\r\n--X--\r\n"
        data = data[:length] if disguised else data
        answer.body, answer.start, answer.stop = BytesBody(data), 0, len(data)
        answer.set("Content-Type", "multipart/byteranges; boundary=X")
        answer.set("Content-Length", str(len(data)))
        if not disguised:
            answer.set("Content-Range")

    return bend


# -- lengths -------------------------------------------------------------------------------------------------------


def wrong_length(by: int) -> Bend:
    """Content-Length is off by so much; the body is not. What is missing is not waited for."""

    def bend(blow: Blow) -> None:
        answer = blow.answer
        answer.set("Content-Length", str(max(0, answer.stop - answer.start + by)))
        answer.close = by > 0

    return bend


def length(*values: str, chunked: bool = False) -> Bend:
    """These Content-Length lines, in which `{length}` is the true one and `{less}` two bytes fewer."""

    def bend(blow: Blow) -> None:
        answer = blow.answer
        true = answer.stop - answer.start
        answer.set("Content-Length", *(value.format(length=true, less=max(0, true - 2)) for value in values))
        answer.chunked, answer.close = chunked, True
        if chunked:
            answer.set("Transfer-Encoding", "chunked")

    return bend


def longer_than_said(blow: Blow) -> None:
    """Right Content-Range, and 999 bytes more than that."""
    answer = blow.answer
    answer.trailer = b"x" * 999
    answer.set("Content-Length", str(answer.stop - answer.start + 999))


# -- other bytes ---------------------------------------------------------------------------------------------------


def change(*, bytes_too: bool = True, keep_validators: bool = False) -> Bend:
    """The file is replaced by another of the same size (or only its ETag is) before this answer."""

    def bend(blow: Blow) -> None:
        resource = blow.resource
        etag = resource.etag
        if bytes_too:
            resource.change(PatternBody(resource.body.size, seed=99))
        if keep_validators:
            resource.etag = etag
        elif etag is None or etag.startswith("W/"):
            resource.etag = etag and 'W/"moved"'
            resource.last_modified = resource.last_modified and formatdate(1_700_009_999, usegmt=True)
        elif not bytes_too:
            resource.etag = '"moved"'
        fresh = healthy(resource, blow.request)
        blow.answer.__dict__.update(fresh.__dict__)

    return bend


def new_etag_every_time(blow: Blow) -> None:
    blow.answer.set("ETag", f'"replica-{blow.request.number}"')


def flip(blow: Blow) -> None:
    blow.answer.flip = blow.position


def compress(blow: Blow) -> None:
    """What a proxy does that compresses on the fly. The true body is sent, so that only the header tells."""
    answer = blow.answer
    data = gzip.compress(b"".join(answer.body.read(answer.start, min(answer.stop, answer.start + 1000))), mtime=0)
    answer.body, answer.start, answer.stop = BytesBody(data), 0, len(data)
    answer.set("Content-Encoding", "gzip")
    answer.set("Content-Length", str(len(data)))


def mark_encoded(blow: Blow) -> None:
    """Right length, right bytes, but said to be compressed."""
    blow.answer.set("Content-Encoding", "br")


# -- connections and redirects -------------------------------------------------------------------------------------


def protocol(version: str = "HTTP/1.1", *, keep: bool = False, preface: bytes = b"", trailer: bytes = b"") -> Bend:
    def bend(blow: Blow) -> None:
        answer = blow.answer
        answer.version, answer.preface, answer.trailer, answer.close = version, preface, trailer, not keep
        if not keep and version == "HTTP/1.1":
            answer.set("Connection", "close")

    return bend


def refuse_connections(blow: Blow) -> None:
    """The body is cut, and whoever connects from now on is sent away."""
    # Not with RST where TLS begins: Python leaves the socket open if that comes before the handshake.
    blow.server.at_accept = lambda number: "close" if blow.server.tls else "reset"
    blow.answer.strike, blow.answer.at = "reset", blow.position


def redirect(location: str, code: int = 302) -> Bend:
    """`{path}` is the request's own path, `{number}` differs for every request."""

    def bend(blow: Blow) -> None:
        place = location.format(path=blow.request.path, number=blow.request.number)
        blow.answer.replace(code, b"elsewhere\n", Location=place)

    return bend


def expire(blow: Blow) -> None:
    """The signed address that was in use runs out; the origin gives another (see `harness`)."""
    blow.resource.expired.add(blow.request.query)
    s3_error(403, "ExpiredToken")(blow)


def limit_connections(most: int) -> Bend:
    """429 while more than `most` requests are under way."""

    def bend(blow: Blow) -> None:
        if blow.request.concurrent > most:
            blow.answer.replace(429, Retry_After="0")

    return bend


def slower_together(blow: Blow) -> None:
    """Every request under way makes all of them slower."""
    blow.answer.pace = 0.0003 * blow.request.concurrent**2


def forbid_head(blow: Blow) -> None:
    if blow.request.method == "HEAD":
        blow.answer.replace(403)


def lie_to_head(blow: Blow) -> None:
    if blow.request.method == "HEAD":
        blow.answer.set("Content-Length", "7")
        blow.answer.set("ETag", '"of something else"')


def unsatisfied(blow: Blow) -> None:
    """416 to a range that exists."""
    blow.answer.replace(416, Content_Range=f"bytes */{blow.answer.body.size}")
