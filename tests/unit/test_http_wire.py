"""One answer's bytes as they come: deadlines, and what came before a failure."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from modelstore.errors import SourceUnavailable
from modelstore.transfer import limits
from modelstore.transfer.http import HttpClient, HttpFile, pool
from modelstore.transfer.http.pool import TooSlow, _Response, _Wire
from tests.unit.wire import RawServer, answer, chunked, part

SMALL = 64 * 1024
LARGE = 512 * 1024


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pool.time, "monotonic", made)
    return made


class Raw:
    """A socket: what comes, and after how many seconds."""

    def __init__(self, clock: Clock, *script: tuple[float, bytes | OSError]) -> None:
        self._clock = clock
        self._script = list(script)
        self.calls = 0

    def makefile(self, mode: str, buffering: int) -> io.BytesIO:
        return io.BytesIO()

    def recv_into(self, buffer: memoryview) -> int:
        self.calls += 1
        if not self._script:
            return 0
        seconds, what = self._script.pop(0)
        self._clock.now += seconds
        if isinstance(what, OSError):
            raise what
        count = min(len(what), len(buffer))
        buffer[:count] = what[:count]
        if count < len(what):
            self._script.insert(0, (0.0, what[count:]))
        return count


def body(raw: Raw) -> _Wire:
    wire = _Wire(raw)
    wire.header_ended()
    return wire


def read(wire: _Wire, size: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: wire.readinto(buffer)])


# -- deadlines ---------------------------------------------------------------------------------------------------------


def test_a_header_that_drips_is_cut(clock: Clock) -> None:
    wire = _Wire(Raw(clock, *[(3.0, b"x")] * 100))
    for _ in range(int(limits.HEADER_SECONDS / 3)):
        assert read(wire, 8192) == b"x"
    with pytest.raises(TooSlow, match="no whole answer within 20 seconds"):
        read(wire, 8192)


def test_a_header_that_ends_in_time_has_no_deadline_any_more(clock: Clock) -> None:
    wire = _Wire(Raw(clock, (19.0, b"x"), (19.0, b"y" * 60000)))
    assert read(wire, 8192) == b"x"
    wire.header_ended()
    assert len(read(wire, 8192)) == 8192


def test_a_body_that_drips_is_cut(clock: Clock) -> None:
    wire = body(Raw(clock, *[(10.0, b"x" * 100)] * 100))
    got = 0
    with pytest.raises(TooSlow, match=r"only 600 bytes came in 60 seconds"):
        while got < 10_000:
            got += len(read(wire, 8192))
    assert got <= 600


def test_a_body_that_is_slow_but_not_that_slow_is_not(clock: Clock) -> None:
    wire = body(Raw(clock, *[(10.0, b"x" * (limits.SLOW_BYTES // 5))] * 100))
    for _ in range(100):
        assert len(read(wire, SMALL)) == limits.SLOW_BYTES // 5


def test_a_fast_start_does_not_pay_for_a_drip_later(clock: Clock) -> None:
    wire = body(Raw(clock, (1.0, b"x" * SMALL), *[(59.5, b"x")] * 3))
    read(wire, SMALL)
    assert read(wire, SMALL) == b"x"
    with pytest.raises(TooSlow):
        read(wire, SMALL)
        read(wire, SMALL)


def test_only_waiting_counts(clock: Clock) -> None:
    """A disk that is slow to write is not the server's fault."""
    wire = body(Raw(clock, *[(0.01, b"x")] * 1000))
    for _ in range(1000):
        assert read(wire, 8192) == b"x"
        clock.now += 3600


def test_time_before_the_header_ended_does_not_count_as_the_bodys(clock: Clock) -> None:
    wire = _Wire(Raw(clock, (15.0, b"h"), (50.0, b"x"), (5.0, b"x")))
    read(wire, 8192)
    wire.header_ended()
    assert read(wire, 8192) == read(wire, 8192) == b"x"


# -- gathering ---------------------------------------------------------------------------------------------------------


def test_a_large_read_is_filled(clock: Clock) -> None:
    wire = body(Raw(clock, *[(0.1, b"x" * 1500)] * 1000))
    assert len(read(wire, LARGE)) == LARGE


def test_a_large_read_ends_with_the_stream(clock: Clock) -> None:
    wire = body(Raw(clock, (0.1, b"ab"), (0.1, b"cd")))
    assert read(wire, LARGE) == b"abcd"
    assert read(wire, LARGE) == b""


@pytest.mark.parametrize("size", [1, 8192, SMALL])
def test_a_small_read_takes_what_is_there(clock: Clock, size: int) -> None:
    """Lines of a header are read like this: the second ``recv`` would wait for a body that does not come."""
    raw = Raw(clock, (0.1, b"a"), (0.1, OSError("waited")))
    assert read(body(raw), size) == b"a"
    assert raw.calls == 1


def test_what_came_before_a_failure_is_not_lost(clock: Clock) -> None:
    reset = ConnectionResetError(104, "Connection reset by peer")
    wire = body(Raw(clock, (0.1, b"ab"), (0.1, b"cd"), (0.1, reset), (0.1, b"never")))
    assert read(wire, LARGE) == b"abcd"
    for size in (LARGE, 10):
        with pytest.raises(ConnectionResetError):
            read(wire, size)


def test_a_failure_with_nothing_before_it_is_raised_at_once(clock: Clock) -> None:
    with pytest.raises(ConnectionResetError):
        read(body(Raw(clock, (0.1, ConnectionResetError(104, "x")))), LARGE)


def test_a_drip_into_a_large_read_is_cut_and_what_came_is_kept(clock: Clock) -> None:
    wire = body(Raw(clock, *[(10.0, b"x")] * 100))
    got = read(wire, LARGE)
    assert 5 <= len(got) <= 6
    with pytest.raises(TooSlow):
        read(wire, LARGE)


# -- real sockets ------------------------------------------------------------------------------------------------------


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    server, client = socket.socketpair()
    client.settimeout(20)
    with server, client:
        yield server, client


def test_a_header_is_read_without_waiting_for_its_body(ends: tuple[socket.socket, socket.socket]) -> None:
    server, client = ends
    server.sendall(answer("200 OK", b"", "Content-Length: 1000000", length=False))
    response = _Response(client, method="GET")
    response.begin()
    assert response.status == 200
    server.sendall(b"x" * 1000)
    server.shutdown(socket.SHUT_WR)
    assert response.read1(LARGE) == b"x" * 1000
    response.close()


def test_one_answer_does_not_eat_into_the_next(ends: tuple[socket.socket, socket.socket]) -> None:
    server, client = ends
    server.sendall(answer("200 OK", b"first"))
    for expected in (b"first", b"second"):
        response = _Response(client, method="GET")
        response.begin()
        assert response.read() == expected
        response.close()
        server.sendall(answer("200 OK", b"second"))


@pytest.fixture
def client() -> Iterator[HttpClient]:
    made = HttpClient("test")
    yield made
    made.close()


def fetch(client: HttpClient, file: HttpFile) -> bytes:
    return b"".join(client.read_range(file, 0, file.size))


BODY = bytes(range(256)) * 2000


def headers(*more: str) -> str:
    return "\r\n".join([f"Content-Range: bytes 0-{len(BODY) - 1}/{len(BODY)}", 'ETag: "x"', *more])


FRAMED: dict[str, Callable[[], bytes]] = {
    "length": lambda: answer("206 Partial Content", BODY, headers()),
    "chunked": lambda: (
        answer("206 Partial Content", b"", headers("Transfer-Encoding: chunked"), length=False)
        + chunked(BODY[:1], BODY[1:70_000], BODY[70_000:300_000], BODY[300_000:])
    ),
}


@pytest.mark.parametrize("frame", FRAMED)
def test_every_answer_uses_the_same_connection(client: HttpClient, frame: str) -> None:
    """That of the probe, too: its one byte is read, or the connection could not be used again."""
    with RawServer(part(BODY, 0, 1), *[FRAMED[frame]()] * 3) as server:
        file = HttpFile(f"{server.url}/m", "m")
        client.probe(file)
        assert (file.size, file.ranges, file.etag) == (len(BODY), True, '"x"')
        for _ in range(3):
            assert fetch(client, file) == BODY
        assert (server.connections, len(server.requests)) == (1, 4)
        client.close()


def test_a_body_that_ends_with_its_connection(client: HttpClient) -> None:
    whole = answer("200 OK", BODY, 'ETag: "x"', "Connection: close", length=False) + RawServer.CLOSE
    with RawServer(answer("200 OK", b"", 'ETag: "x"', f"Content-Length: {len(BODY)}", length=False), whole) as server:
        file = HttpFile(f"{server.url}/m", "m")
        client.probe(file)
        assert (file.size, file.ranges) == (len(BODY), False)
        assert b"".join(client.read_all(file)) == BODY
        client.close()


@pytest.mark.parametrize("cut", [0, 1, 100_000, len(BODY) - 1])
def test_what_came_before_the_end_is_given(client: HttpClient, cut: int) -> None:
    whole = FRAMED["length"]()
    with RawServer(part(BODY, 0, 1), whole[: len(whole) - len(BODY) + cut] + RawServer.CLOSE) as server:
        file = HttpFile(f"{server.url}/m", "m")
        client.probe(file)
        got: list[bytes] = []
        with suppress(SourceUnavailable):
            got.extend(client.read_range(file, 0, file.size))
        assert b"".join(got) == BODY[:cut]
        client.close()
