"""Connections with deadlines. urllib3's timeouts are for one ``recv`` each, so a drip of bytes would hold for ever."""

import errno
import io
import socket
import ssl
import time
from contextlib import suppress
from functools import partial
from http.client import HTTPResponse, LineTooLong
from threading import Lock
from typing import Any, Final
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, LocationParseError

from modelstore.transfer import limits
from modelstore.transfer.http.addresses import is_metadata
from modelstore.transfer.http.file import origin_of
from modelstore.transfer.http.tls import trust

__all__ = ["Pools", "TooSlow"]

#: Bytes. Lines of a header are read through a smaller buffer, and must not be waited for together.
_SMALL: Final = 64 * 1024
#: Bytes. So much of an answer that nobody wants, a redirect's page for one, is read: it costs less than a connection.
_SMALL_REST: Final = 8 * 1024


class TooSlow(TimeoutError):
    """Bytes come, but so few that nothing will come of it."""


#: The sockets on which an answer is waited for or read, by the connection or the answer.
_OpenSockets = dict[object, socket.socket]


class Pools:
    """One pool of connections for each proxy and scheme, and those without."""

    def __init__(self, ca_bundle: str | None = None) -> None:
        self._ca_bundle = ca_bundle
        self._pools: dict[tuple[str | None, str], urllib3.PoolManager] = {}
        self._by_origin: dict[tuple[str, str | None, int | None], urllib3.PoolManager] = {}
        self._open_sockets: _OpenSockets = {}
        self._lock = Lock()

    def of(self, url: str) -> urllib3.PoolManager:
        """The connections for a URL: direct, or through the proxy that ``HTTPS_PROXY`` and its like name for it."""
        origin = origin_of(url)
        if found := self._by_origin.get(origin):
            return found
        parts = urlsplit(url)
        proxies = getproxies()  # looks at every variable of the environment: not for every request
        proxy = proxies.get(parts.scheme) or proxies.get("all")
        if proxy and proxy_bypass(parts.netloc.rpartition("@")[2], proxies):
            proxy = None
        with self._lock:
            by = (proxy, parts.scheme)
            if by not in self._pools:
                self._pools[by] = self._connect_by(*by)
            self._by_origin[origin] = self._pools[by]
            return self._pools[by]

    def _connect_by(self, proxy: str | None, scheme: str) -> urllib3.PoolManager:
        tls = "https" in (scheme, (proxy or "").partition(":")[0].lower())
        context = trust(self._ca_bundle) if tls else None
        try:
            return _connect_by(proxy, context, self._open_sockets)
        except (HTTPError, ValueError):  # not chained: its text quotes what may be a password
            raise LocationParseError("the proxy") from None

    def done(self, response: urllib3.BaseHTTPResponse) -> None:
        """An answer is read, as far as it will be. Its connection may be used again if nothing of it is left."""
        self._open_sockets.pop(response, None)
        left = response.length_remaining
        if left is not None and left <= _SMALL_REST:
            response.drain_conn()  # an empty body, too, has to be read
            response.release_conn()
        else:
            response.close()

    def close(self) -> None:
        """Close the connections that nobody uses, and end the wait for bytes in other threads."""
        for sock in list(self._open_sockets.values()):
            with suppress(OSError):
                # Not TLS's own, which would go on without TLS.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for pool in self._pools.values():
            pool.clear()


def _connect_by(proxy: str | None, context: ssl.SSLContext | None, open_sockets: _OpenSockets) -> urllib3.PoolManager:
    options: dict[str, Any] = {
        "num_pools": 16,
        "maxsize": limits.LARGEST_POOL,
        "timeout": urllib3.Timeout(connect=limits.CONNECT_SECONDS, read=limits.STALL_SECONDS),
        "retries": False,
        "ssl_context": context,
    }
    if proxy is None:
        manager = urllib3.PoolManager(**options)
    else:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        userinfo, _, host = parts.netloc.rpartition("@")
        if not host:
            raise ValueError("a proxy has no host")
        headers = urllib3.make_headers(proxy_basic_auth=unquote(userinfo)) if userinfo else None
        manager = urllib3.ProxyManager(
            parts._replace(netloc=host).geturl(), proxy_headers=headers, proxy_ssl_context=context, **options
        )
    classes = {
        "http": partial(_HttpPool, open_sockets=open_sockets),
        "https": partial(_HttpsPool, open_sockets=open_sockets),
    }
    manager.pool_classes_by_scheme = classes  # type: ignore[assignment]  # they are only called
    return manager


class _Wire(io.RawIOBase):
    """The bytes of one answer as they come, held to its deadlines. Raises :class:`TooSlow`."""

    def __init__(self, sock: socket.socket) -> None:
        self._raw = sock.makefile("rb", buffering=0)  # keeps the socket open until this is closed
        self._receive_into = sock.recv_into
        self._header_by: float | None = time.monotonic() + limits.HEADER_SECONDS
        self._waited = 0.0
        self._came = 0
        self._error: OSError | None = None

    def header_ended(self) -> None:
        self._header_by = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._error:
            raise self._error
        if self._header_by is None:
            return self._body_into(memoryview(buffer))
        count = self._receive_into(buffer)
        if time.monotonic() > self._header_by:
            raise TooSlow(f"no whole answer within {limits.HEADER_SECONDS:g} seconds")
        return count

    def _body_into(self, view: memoryview) -> int:
        """Receive once into a small buffer, and until a large one is full.

        A large one is asked for only where as many bytes are still to come. Filling it here saves a round through
        everything above for every packet or TLS record (16 KiB), and what came before a failure is not lost.
        """
        begun, count, size = time.monotonic(), 0, len(view)
        while True:
            try:
                more = self._receive_into(view[count:] if count else view)
                self._check_pace(time.monotonic() - begun, more)
            except OSError as error:
                if not count:
                    raise
                self._error = error
                break
            count += more
            if not more or count == size or size <= _SMALL:
                break
        # Only the time spent waiting counts: a disk that is slow to write is not the server's fault.
        self._waited += time.monotonic() - begun
        return count

    def _check_pace(self, waited: float, came: int) -> None:
        self._came += came
        if self._waited + waited >= limits.SLOW_SECONDS:
            if self._came < limits.SLOW_BYTES:
                raise TooSlow(f"only {self._came} bytes came in {limits.SLOW_SECONDS:g} seconds")
            self._waited, self._came = -waited, 0

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Files:
    """Gives a response its file, as a socket does."""

    def __init__(self, sock: socket.socket) -> None:
        self.wire = _Wire(sock)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self.wire)


class _Response(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        files = _Files(sock)
        super().__init__(files, *args, **kwargs)  # type: ignore[arg-type]  # it only calls makefile
        self._wire = files.wire

    def begin(self) -> None:
        super().begin()
        self._wire.header_ended()

    def _read_and_discard_trailer(self) -> None:
        """As in http.client, which reads trailers for as long as they come."""
        left = limits.TRAILER_BYTES
        while line := self.fp.readline(left + 1):
            left -= len(line)
            if left < 0:
                raise LineTooLong("trailer")
            if line in (b"\r\n", b"\n"):
                break


class _Guarded(HTTPConnection):
    """What both kinds of connection do besides: they can be interrupted, clean up, and know where not to go."""

    _answer: HTTPResponse | None = None

    def __init__(self, *args: Any, open_sockets: "_OpenSockets", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._open_sockets = open_sockets

    @property
    def _plain(self) -> socket.socket:
        """The socket below TLS, and below TLS within TLS."""
        return getattr(self.sock, "socket", self.sock)

    def connect(self) -> None:
        super().connect()
        plain = self._plain
        peer = plain.getpeername()[0] if plain.family in (socket.AF_INET, socket.AF_INET6) else ""
        if peer and is_metadata(peer) and peer != self.host.strip("[]"):
            # A name that led elsewhere when it was looked at leads there now, or it always did.
            self.close()
            raise OSError(errno.EACCES, "its name leads to a link-local address")

    def response_class(self, sock: socket.socket, *args: Any, **kwargs: Any) -> HTTPResponse:  # type: ignore[override]
        self._answer = _Response(sock, *args, **kwargs)
        return self._answer

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as in urllib3 itself
        plain = self._plain
        self._open_sockets[self] = plain
        try:
            response = super().getresponse()
        except BaseException:
            if self._answer:
                self._answer.close()
            raise
        else:
            self._open_sockets[response] = plain
            return response
        finally:
            self._answer = None
            del self._open_sockets[self]


class _HttpsConnection(_Guarded, HTTPSConnection):
    pass


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Guarded


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection
