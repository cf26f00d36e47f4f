"""The fault server does what it is told, judged by http.client and bare sockets: so that a cell says something."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.faults import bend
from tests.faults.bend import Bend, Blow
from tests.faults.server import FaultServer, Resource, tls_context
from tests.support.httpserver import TLS_CERT, PatternBody

BODY = PatternBody(3_000_000, seed=5)
DATA = b"".join(BODY.read(0, BODY.size))
SPAN = {"Range": "bytes=1000-1999999"}


@pytest.fixture
def resource(server: FaultServer) -> Resource:
    return server.add("/m", BODY)


@contextmanager
def connected(server: FaultServer) -> Iterator[http.client.HTTPConnection]:
    with closing(http.client.HTTPConnection(server.host, server.port, timeout=5)) as connection:
        yield connection


def get(server: FaultServer, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    with connected(server) as connection:
        connection.request(method, "/m", headers=headers)
        with connection.getresponse() as response:
            return response, response.read()


def raw(server: FaultServer, range_: str = "bytes=0-9") -> bytes:
    """All that comes for one request, to the last byte before the connection closes."""
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall(f"GET /m HTTP/1.1\r\nHost: x\r\nRange: {range_}\r\n\r\n".encode())
        connection.shutdown(socket.SHUT_WR)
        pieces = iter(lambda: connection.recv(65536), b"")
        return b"".join(pieces)


def script(resource: Resource, server: FaultServer, how: Bend, position: int = 0) -> None:
    resource.script = lambda request, answer: how(Blow(server, resource, request, answer, position))


def test_a_good_server(server: FaultServer, resource: Resource) -> None:
    response, data = get(server)
    assert (response.status, data) == (200, DATA)
    response, data = get(server, **SPAN)
    assert (response.status, data) == (206, DATA[1000:2_000_000])
    assert response.headers["Content-Range"] == f"bytes 1000-1999999/{BODY.size}"
    assert response.headers["ETag"] == resource.etag
    assert [request.body_bytes for request in server.log] == [BODY.size, 1_999_000]
    assert [request.status for request in server.log] == [200, 206]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Range": "bytes=2999999-"}, 206),
        ({"Range": "bytes=3000000-"}, 416),
        ({"If-Match": '"other"'}, 412),
        ({"If-Match": "ETAG"}, 200),
        ({"Range": "bytes=0-0", "If-Range": '"other"'}, 200),
        ({"Range": "bytes=0-0", "If-Range": "ETAG"}, 206),
        ({"If-Unmodified-Since": "Tue, 14 Nov 2000 22:13:20 GMT"}, 412),
    ],
)
def test_conditions(server: FaultServer, resource: Resource, headers: dict[str, str], status: int) -> None:
    headers = {name: value.replace("ETAG", str(resource.etag)) for name, value in headers.items()}
    assert get(server, **headers)[0].status == status


def test_head_has_no_body(server: FaultServer, resource: Resource) -> None:
    response, data = get(server, "HEAD")
    assert (response.headers["Content-Length"], data) == (str(BODY.size), b"")


def test_a_connection_is_used_again(server: FaultServer, resource: Resource) -> None:
    with connected(server) as connection:
        for _ in range(3):
            connection.request("GET", "/m", headers={"Range": "bytes=0-9"})
            with connection.getresponse() as response:
                assert response.read() == DATA[:10]
    assert {request.connection for request in server.log} == {1}


@pytest.mark.parametrize("strike", ["close", "reset"])
@pytest.mark.parametrize("position", [1000, 1_000_000, 1_999_999])
def test_exactly_so_many_bytes_come(server: FaultServer, resource: Resource, strike: str, position: int) -> None:
    script(resource, server, bend.body(strike), position)
    data, end = b"", "close"
    with connected(server) as connection:
        connection.request("GET", "/m", headers=SPAN)
        with connection.getresponse() as response:
            try:
                while piece := response.read1(65536):
                    data += piece
            except ConnectionResetError:
                end = "reset"
    assert end == strike
    assert data == DATA[1000:position]
    assert server.log[0].body_bytes == position - 1000


def test_reset_and_silence_before_the_head(server: FaultServer, resource: Resource) -> None:
    script(resource, server, bend.instead_of_head("reset"))
    with pytest.raises(ConnectionResetError):
        get(server)
    for strike in ("stall", "drip"):
        script(resource, server, bend.instead_of_head(strike))
        with socket.create_connection((server.host, server.port), timeout=0.4) as connection:
            connection.sendall(b"GET /m HTTP/1.1\r\nHost: x\r\n\r\n")
            begun, data = time.monotonic(), b""
            while time.monotonic() < begun + 0.4:
                try:
                    data += connection.recv(1000)
                except TimeoutError:
                    break
        assert (data == b"") is (strike == "stall")
        assert b"\r\n" not in data
        assert b"HTTP/1.1 200".startswith(data[:12])


@pytest.mark.parametrize(("strike", "least", "most"), [("stall", 0, 0), ("drip", 1, 60)])
def test_the_body_stops_flowing(server: FaultServer, resource: Resource, strike: str, least: int, most: int) -> None:
    script(resource, server, bend.body(strike), 500_000)
    with connected(server) as connection:
        connection.request("GET", "/m")
        with connection.getresponse() as response:
            assert response.read(500_000) == DATA[:500_000]
            connection.sock.settimeout(0.5)
            deadline, more = time.monotonic() + 0.5, 0
            while time.monotonic() < deadline:
                try:
                    more += len(response.read1(100))
                except TimeoutError:
                    break
        assert least <= more <= most


def test_headers_as_they_are_listed(server: FaultServer, resource: Resource) -> None:
    script(resource, server, bend.length("{length}", "-{length}"))
    head = raw(server).partition(b"\r\n\r\n")[0]
    assert b"\r\nContent-Length: 10\r\n" in head
    assert head.endswith(b"\r\nContent-Length: -10")
    script(resource, server, bend.length(chunked=True))
    assert raw(server).endswith(b"\r\n\r\na\r\n" + DATA[:10] + b"\r\n0\r\n\r\n")
    script(resource, server, bend.length())
    head, _, data = raw(server).partition(b"\r\n\r\n")
    assert b"Content-Length" not in head
    assert data == DATA[:10]


@pytest.mark.parametrize(
    ("how", "claimed", "data"),
    [
        (bend.header("Content-Range"), None, DATA[20:30]),
        (bend.content_range("bytes {first}-{last}/*"), "bytes 20-29/*", DATA[20:30]),
        (bend.content_range("bytes {first}-{last}/{more}"), "bytes 20-29/3000005", DATA[20:30]),
        (bend.other_range(1), "bytes 21-30/3000000", DATA[21:31]),
        (bend.other_range(-10), "bytes 10-19/3000000", DATA[10:20]),
        (bend.resize(limit=3), "bytes 20-22/3000000", DATA[20:23]),
        (bend.resize(more=5), "bytes 20-34/3000000", DATA[20:35]),
        (bend.longer_than_said, "bytes 20-29/3000000", DATA[20:30] + b"x" * 999),
    ],
)
def test_ranges(server: FaultServer, resource: Resource, how: Bend, claimed: str | None, data: bytes) -> None:
    script(resource, server, how)
    response, sent = get(server, Range="bytes=20-29")
    assert (response.status, response.headers["Content-Range"], sent) == (206, claimed, data)


def test_multipart(server: FaultServer, resource: Resource) -> None:
    script(resource, server, bend.multipart(disguised=False))
    response, data = get(server, Range="bytes=20-29")
    assert response.headers.get_content_type() == "multipart/byteranges"
    assert DATA[20:30] in data
    script(resource, server, bend.multipart(disguised=True))
    response, data = get(server, Range="bytes=20-29")
    assert (response.headers["Content-Range"], len(data)) == ("bytes 20-29/3000000", 10)


def test_another_version(server: FaultServer, resource: Resource) -> None:
    etag = resource.etag
    script(resource, server, bend.change())
    response, data = get(server)
    assert response.headers["ETag"] != etag
    assert data != DATA
    assert len(data) == len(DATA)
    assert get(server, **{"If-Match": str(etag)})[0].status == 412


def test_one_bit(server: FaultServer, resource: Resource) -> None:
    script(resource, server, bend.flip, 1_000_000)
    data = get(server)[1]
    assert [at for at in range(BODY.size) if data[at] != DATA[at]] == [1_000_000]
    assert data[1_000_000] ^ DATA[1_000_000] == 1


def test_what_comes_before_and_after(server: FaultServer, resource: Resource) -> None:
    script(resource, server, bend.protocol("HTTP/1.0", preface=b"what?", trailer=b"junk"))
    answer = raw(server)
    assert answer.startswith(b"what?HTTP/1.0 206 Partial Content\r\n")
    assert answer.endswith(DATA[:10] + b"junk")


def test_redirects_and_refusals(server: FaultServer, resource: Resource) -> None:
    script(resource, server, bend.redirect("file:///x"))
    assert get(server)[0].headers["Location"] == "file:///x"
    script(resource, server, bend.status(429, Retry_After="7"))
    response, _ = get(server)
    assert (response.status, response.headers["Retry-After"]) == (429, "7")
    resource.script = None
    resource.expired.add("sig=1")
    with connected(server) as connection:
        for query, status in (("sig=1", 403), ("sig=2", 200)):
            connection.request("GET", f"/m?{query}")
            with connection.getresponse() as response:
                assert response.status == status
                response.read()


def test_encodings(server: FaultServer, resource: Resource) -> None:
    script(resource, server, bend.compress)
    response, data = get(server)
    assert (response.headers["Content-Encoding"], data[:2]) == ("gzip", b"\x1f\x8b")


def test_connections_above_a_limit_are_refused(server: FaultServer, resource: Resource) -> None:
    def one_stalls(blow: Blow) -> None:
        bend.limit_connections(1)(blow)
        if blow.request.number == 1:
            bend.body("stall")(blow)

    script(resource, server, one_stalls, 1000)
    with connected(server) as first:
        first.request("GET", "/m")
        with first.getresponse() as response:
            assert response.status == 200
            assert get(server)[0].status == 429


def test_at_accept(server: FaultServer, resource: Resource) -> None:
    server.at_accept = lambda number: "reset" if number == 1 else ""
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        get(server)
    assert get(server)[0].status == 200
    assert server.connections == 2


def test_tls(tls_server: FaultServer) -> None:
    tls_server.add("/m", BODY)
    trusting = ssl.create_default_context(cafile=str(TLS_CERT))
    with closing(http.client.HTTPSConnection(tls_server.host, tls_server.port, timeout=5, context=trusting)) as good:
        good.request("GET", "/m")
        with good.getresponse() as response:
            assert response.read() == DATA


@pytest.mark.parametrize("name", ["expired", "other-host", "untrusted"])
def test_bad_certificates(tls_server: FaultServer, name: str) -> None:
    tls_server.tls = tls_context(Path(__file__).parent / "tls" / f"{name}.pem")
    trusting = ssl.create_default_context(cafile=str(TLS_CERT))
    bad = http.client.HTTPSConnection(tls_server.host, tls_server.port, timeout=5, context=trusting)
    with closing(bad), pytest.raises(ssl.SSLCertVerificationError) as caught:
        bad.connect()
    words = {"expired": "expired", "other-host": "not valid for '127.0.0.1'", "untrusted": "self-signed"}
    assert words[name] in str(caught.value).replace("self signed", "self-signed")


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fault-")]


def test_nothing_is_left(server: FaultServer) -> None:
    with FaultServer() as other, FaultServer(tls=tls_context()) as third:
        for one, strike in ((other, "stall"), (third, "stall")):
            resource = one.add("/m", BODY)
            script(resource, one, bend.instead_of_head(strike))
        idle = socket.create_connection((other.host, other.port))
        waiting = socket.create_connection((other.host, other.port))
        waiting.sendall(b"GET /m HTTP/1.1\r\nHost: x\r\n\r\n")
        half = socket.create_connection((third.host, third.port))  # no handshake
        assert len(threads()) >= 3
    with idle, waiting, half:
        assert threads() == ["fault-accept"]  # of the fixture's own server
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((other.host, other.port))


def test_a_mistake_in_a_script_is_shown() -> None:
    def broken(blow: Blow) -> None:
        raise LookupError("a mistake")

    with pytest.raises(LookupError, match="a mistake"), FaultServer() as server:
        script(server.add("/m", BODY), server, broken)
        with pytest.raises((http.client.HTTPException, OSError)):
            get(server)
