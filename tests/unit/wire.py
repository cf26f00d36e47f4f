"""A server that says exactly what it is told to, byte for byte, and counts the connections it was asked over."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

WAIT = 30  # seconds: for what must happen; nothing depends on how long it takes


class RawServer:
    """Answers the n-th request with the n-th of ``answers``, whichever connection it comes over.

    With ``None`` for an answer it says nothing, until the client has gone. It closes a connection after an answer that
    ends with ``CLOSE``.
    """

    CLOSE = b"!close!"

    def __init__(self, *answers: bytes | None) -> None:
        self._answers: Sequence[bytes | None] = answers
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.requests: list[bytes] = []
        self.connections = 0
        self.asked = threading.Semaphore(0)
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self._listener, *self._open):
            with suppress(OSError):  # it is closed
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WAIT)
        for end in (self._listener, *self._open):
            end.close()

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        pending = b""
        try:
            while piece := connection.recv(65536):
                pending += piece
                while b"\r\n\r\n" in pending:
                    request, _, pending = pending.partition(b"\r\n\r\n")
                    if not self._answer(connection, request):
                        return
        except OSError:
            return  # the client went away

    def _answer(self, connection: socket.socket, request: bytes) -> bool:
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
        answer = self._answers[number] if number < len(self._answers) else b"HTTP/1.1 500 No more\r\n\r\n"
        self.asked.release()
        if answer is None:
            return True
        connection.sendall(answer.removesuffix(self.CLOSE))
        if answer.endswith(self.CLOSE):
            connection.shutdown(socket.SHUT_RDWR)
            return False
        return True


def answer(status: str, body: bytes = b"", *headers: str, length: bool = True) -> bytes:
    """An answer, framed by its length unless told otherwise."""
    lines = [f"HTTP/1.1 {status}", *headers, *([f"Content-Length: {len(body)}"] if length else [])]
    return "\r\n".join([*lines, "", ""]).encode() + body


def part(body: bytes, start: int, stop: int, *headers: str) -> bytes:
    """A 206 with these bytes of a body, under the ETag "x"."""
    span = f"Content-Range: bytes {start}-{stop - 1}/{len(body)}"
    return answer("206 Partial Content", body[start:stop], span, 'ETag: "x"', *headers)


def chunked(*pieces: bytes) -> bytes:
    """Chunked coding (RFC 9112 section 7.1)."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))
