"""What goes over the wire: a request as it was read, an answer as a script may bend it, and its delivery.

An `Answer` is healthy until somebody changes it. Everything a broken server, proxy or network does is a field of it:
the bytes of the head, what is claimed and what is sent, and where in the body the connection closes, resets, stalls
or drips.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
import time
from dataclasses import dataclass
from http import HTTPStatus
from threading import Event
from typing import TYPE_CHECKING, Literal

from tests.support.httpserver import Body, BytesBody

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE = 64 * 1024
#: Seconds between two dripped bytes: the "1 B/s" of the table, as much quicker as the tests' limits are shorter.
DRIP_SECONDS = 0.05

Strike = Literal["", "close", "reset", "stall", "drip"]


class Gone(Exception):
    """The client went away, or the server is being closed."""


@dataclass
class Request:
    """One line of the log. Times are those of `time.monotonic`; `body_bytes` is never less than the client has."""

    number: int  # of all requests to the server, from 1
    nth: int  # of those to this path (query not counted), from 1
    connection: int
    method: str
    path: str
    query: str
    headers: dict[str, str]  # names in lower case
    concurrent: int  # requests under way on the server, this one included
    begun: float
    ended: float = 0.0
    status: int = 0
    body_bytes: int = 0
    start: int = 0  # the bytes a healthy answer would have: [start, stop)
    stop: int = 0
    struck: str = ""  # which fault a script chose
    genuine: bool = True  # whether what was sent is of the resource's own body

    @property
    def is_probe(self) -> bool:
        """Whether it asks for no more than the first byte."""
        return self.method == "HEAD" or self.headers.get("range") == "bytes=0-0"


@dataclass
class Answer:
    """What will be sent. `start` and `stop` choose the bytes of `body`; headers are sent exactly as listed."""

    status: int
    headers: list[tuple[str, str]]
    body: Body
    start: int = 0
    stop: int = 0
    version: str = "HTTP/1.1"
    preface: bytes = b""  # before the status line
    trailer: bytes = b""  # after the body
    silent: Strike = ""  # before or, for "drip", in the head
    strike: Strike = ""  # what happens at byte `at` of the body (an offset into `body`)
    at: int = 0
    flip: int | None = None  # an offset into `body` whose lowest bit is wrong
    chunked: bool = False
    pace: float = 0.0  # seconds to wait before every piece of the body
    close: bool = False  # the connection ends with this answer

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def set(self, name: str, *values: str) -> None:
        """Send this header with these values, one line each; none of them removes it."""
        kept = [(key, value) for key, value in self.headers if key.lower() != name.lower()]
        self.headers = kept + [(name, value) for value in values]

    def replace(self, status: int, data: bytes = b"", **headers: str) -> None:
        """Answer something else altogether; a header's underscores become dashes."""
        self.status, self.body, self.start, self.stop = status, BytesBody(data), 0, len(data)
        self.headers = [("Content-Length", str(len(data)))]
        self.headers += [(name.replace("_", "-"), value) for name, value in headers.items()]

    def head(self) -> bytes:
        phrase = HTTPStatus(self.status).phrase if self.status in list(HTTPStatus) else "Odd"
        lines = [f"{self.version} {self.status} {phrase}", *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


class Delivery:
    """Sends one answer over one connection. `send` says whether the connection may be used again."""

    def __init__(self, connection: socket.socket, request: Request, closing: Event) -> None:
        self._connection = connection
        self._request = request
        self._closing = closing

    def send(self, answer: Answer) -> bool:
        self._request.status = answer.status
        if answer.silent and not self._be_silent(answer):
            return False
        self._connection.sendall(answer.preface + answer.head())
        if self._request.method == "HEAD":
            return not answer.close
        end = max(answer.start, min(answer.stop, answer.at)) if answer.strike else answer.stop
        for piece in _flipped(answer, answer.start, end):
            if answer.pace:
                self._wait(answer.pace)
            self._body(piece, answer.chunked)
        if answer.strike and answer.at < answer.stop:
            return self._strike(answer)
        self._connection.sendall((b"0\r\n\r\n" if answer.chunked else b"") + answer.trailer)
        return not answer.close

    def _body(self, piece: bytes, chunked: bool = False) -> None:
        self._request.body_bytes += len(piece)  # before it goes out: never less than the client has
        self._connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)

    def _be_silent(self, answer: Answer) -> bool:
        """What happens instead of a head; True if the head follows after all."""
        if answer.silent == "drip":
            head = answer.head()
            for byte in head[:-2] + b"X-Filler: " + b"x" * 60_000:
                self._wait(DRIP_SECONDS)
                self._connection.sendall(bytes([byte]))
        self._act(answer.silent)
        return False

    def _strike(self, answer: Answer) -> bool:
        if answer.strike == "drip":
            for piece in _flipped(answer, answer.at, answer.stop):
                for byte in piece:
                    self._wait(DRIP_SECONDS)
                    self._body(bytes([byte]), answer.chunked)
        self._act(answer.strike)
        return False

    def _act(self, strike: Strike) -> None:
        if strike == "stall":
            while True:
                self._wait(1.0)
        elif strike == "reset":
            self._drain()
            reset(self._connection)

    def _drain(self) -> None:
        """Until the client's side has all that was sent, so that a reset takes nothing back."""
        unsent = bytearray(4)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and not self._closing.is_set():
            fcntl.ioctl(self._connection.fileno(), termios.TIOCOUTQ, unsent)
            if not any(unsent):
                return
            self._closing.wait(0.002)

    def _wait(self, seconds: float) -> None:
        """Let time pass; raises `Gone` as soon as nobody is there any more."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([self._connection], [], [], min(left, 0.05))
            if readable or self._closing.is_set():
                raise Gone


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _flipped(answer: Answer, start: int, stop: int) -> Iterator[bytes]:
    """Pieces of at most `PIECE` bytes of [start, stop), with the wrong bit in them."""
    at = start
    for block in answer.body.read(start, stop):
        for offset in range(0, len(block), PIECE):
            piece = block[offset : offset + PIECE]
            if answer.flip is not None and at <= answer.flip < at + len(piece):
                spot = answer.flip - at
                piece = piece[:spot] + bytes([piece[spot] ^ 1]) + piece[spot + 1 :]
            yield piece
            at += len(piece)
