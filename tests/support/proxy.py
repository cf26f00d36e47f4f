"""A forward proxy on 127.0.0.1, with a password if asked for: CONNECT tunnels, and `GET http://…` passed on.

    with Proxy("user:password", names={"models.example.com": "127.0.0.1:8443"}) as proxy:
        ... with HTTPS_PROXY=proxy.url_with("user:password") ...
        assert proxy.asked == [("CONNECT", "models.example.com:443")]

`names` says where the hosts are that it knows besides 127.x.y.z: it never looks one up. Standard library only.
"""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import threading
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType


class Proxy:
    """`log` has the head of every request as it was sent, `asked` its method and target."""

    def __init__(self, account: str | None = None, names: Mapping[str, str] | None = None) -> None:
        self._token = base64.b64encode(account.encode()).decode() if account else None
        self._names = dict(names or {})
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.host, self.port = self._listener.getsockname()
        self.url = f"http://{self.host}:{self.port}"
        self.log: list[str] = []
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, name="proxy-accept")

    def url_with(self, userinfo: str) -> str:
        """Its address with what goes before "@", percent-encoded by the caller."""
        return f"http://{userinfo}@{self.host}:{self.port}"

    @property
    def asked(self) -> list[tuple[str, str]]:
        return [(head.split()[0], head.split()[1]) for head in self.log]

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._acceptor.join()
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._run, args=(client,), name="proxy"))
            self._threads[-1].start()

    def _run(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while (head := self._head(client)) is not None:
                self.log.append(head)
                if self._token and f"proxy-authorization: basic {self._token}".lower() not in head.lower():
                    challenge = "Proxy-Authenticate: Basic realm=proxy"
                    client.sendall(f"HTTP/1.1 407 Who are you\r\n{challenge}\r\nContent-Length: 0\r\n\r\n".encode())
                    return
                self._pass_on(client, head)

    def _head(self, client: socket.socket) -> str | None:
        """The next request's, which has no body."""
        received = b""
        while b"\r\n\r\n" not in received:
            if not self._readable(client) or not (piece := client.recv(65536)):
                return None
            received += piece
        return received.decode("latin-1")

    def _pass_on(self, client: socket.socket, head: str) -> None:
        method, target, _ = head.split(" ", 2)
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        named = f"{parts.hostname}:{parts.port or {'http': 80}.get(parts.scheme, 443)}"
        host, _, port = self._names.get(parts.hostname or "", named).partition(":")
        if not host.startswith("127."):
            client.sendall(b"HTTP/1.1 502 No such host\r\nContent-Length: 0\r\n\r\n")
            return
        with socket.create_connection((host, int(port))) as upstream:
            if method == "CONNECT":
                client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                self._splice(client, upstream)
                return
            lines = head.removesuffix("\r\n\r\n").split("\r\n")[1:]
            kept = [line for line in lines if not line.lower().startswith("proxy-")]
            path = parts._replace(scheme="", netloc="").geturl() or "/"
            upstream.sendall("\r\n".join([f"{method} {path} HTTP/1.1", *kept, "", ""]).encode())
            self._splice(client, upstream, until_asked=True)

    def _splice(self, client: socket.socket, upstream: socket.socket, *, until_asked: bool = False) -> None:
        """Both ways, until one side has nothing more to say, or until the client asks for something else."""
        while not self._closing.is_set():
            ready, _, _ = select.select([client, upstream], [], [], 0.1)
            if until_asked and client in ready:
                return
            for side in ready:
                data = side.recv(65536)
                if not data and until_asked:
                    client.shutdown(socket.SHUT_RDWR)
                if not data:
                    return
                (upstream if side is client else client).sendall(data)

    def _readable(self, sock: socket.socket) -> bool:
        while not self._closing.is_set():
            if select.select([sock], [], [], 0.1)[0]:
                return True
        return False
