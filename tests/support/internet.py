"""The internet, as far as a test needs it: a proxy whose tunnels all end at servers of this machine.

    with TokenRegistry(tls=internet_tls()) as registry, Internet({"registry.ollama.ai": registry}) as internet:
        ... run the command with internet.env ...
        assert internet.tunnels == [...]

So public names, https and the hosts that belong together can be tried without asking any of them. What has no server
here is refused, and in `tunnels` too.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tests.support.httpserver import TLS_DIR
from tests.support.tokenregistry import StandIn

PEM = TLS_DIR / "internet.pem"  # made for these tests, guards nothing; its names are the ones that they use


def internet_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    return context


class Internet:
    """The proxy. `env` makes the command use it and trust what is behind it."""

    def __init__(self, hosts: Mapping[str, StandIn]) -> None:
        self.hosts = dict(hosts)
        self.tunnels: list[str] = []  # host:port, as asked
        self._server = _Proxy(("127.0.0.1", 0), _Handler)
        self._server.internet = self
        url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.env = {"HTTPS_PROXY": url, "HTTP_PROXY": url, "http_proxy": url, "https_proxy": url}
        self.env |= {"SSL_CERT_FILE": str(PEM), "NO_PROXY": "", "no_proxy": ""}
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="internet")

    @property
    def asked(self) -> set[str]:
        return {tunnel.rpartition(":")[0] for tunnel in self.tunnels}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Proxy(ThreadingHTTPServer):
    daemon_threads = False
    internet: Internet

    def __init__(self, *args: Any) -> None:
        self.closing = threading.Event()
        super().__init__(*args)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away; what matters is in `tunnels`."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def do_CONNECT(self) -> None:
        internet = self.server.internet
        internet.tunnels.append(self.path)
        self.close_connection = True
        found = internet.hosts.get(self.path.removesuffix(":443"))
        if found is None:
            self.send_error(502)
            return
        self.send_response(200)
        self.end_headers()
        with socket.create_connection(("127.0.0.1", found.port)) as behind, contextlib.suppress(OSError):
            self._pump(behind)

    def do_GET(self) -> None:
        """Plain http, which nothing here should be asked by."""
        self.server.internet.tunnels.append(self.path)
        self.send_error(502)

    def _pump(self, behind: socket.socket) -> None:
        ends = {self.connection: behind, behind: self.connection}
        while not self.server.closing.is_set():
            ready, _, _ = select.select(list(ends), [], [], 0.05)
            for end in ready:
                data = end.recv(1 << 16)
                if not data:
                    return
                ends[end].sendall(data)
