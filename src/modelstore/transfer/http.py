"""Ranges over HTTP, with urllib3. Every answer is checked before a byte of it is believed.

Status and validator rules are those of RFC 9110 (§13 conditional requests, §14 range requests).
"""

import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from threading import Lock
from typing import Any, Final
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, ProxyError, ReadTimeoutError, SSLError
from urllib3.exceptions import TimeoutError as UrllibTimeoutError

from modelstore.errors import (
    SourceChanged,
    SourceError,
    SourceNotFound,
    SourceUnauthorized,
    SourceUnavailable,
)
from modelstore.sources.base import RangesIgnored

__all__ = ["HttpClient", "HttpFile"]

PIECE: Final = 1024 * 1024
CONNECT_SECONDS: Final = 5.0
#: No byte for so long is a stall.
STALL_SECONDS: Final = 20.0
MAX_REDIRECTS: Final = 10
MAX_RETRY_AFTER: Final = 120.0

_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_UNSATISFIED: Final = re.compile(r"bytes \*/(\d{1,18})")
_LENGTH: Final = re.compile(r"\d{1,18}")
_REDIRECTS: Final = (301, 302, 303, 307, 308)


@dataclass
class HttpFile:
    """A file behind a URL. ``url`` may hold a signature, so only ``shown`` goes into messages.

    ``headers`` (credentials) are sent to the URL's own host, port and scheme only. What ``probe`` found: ``size`` in
    bytes, whether the server answers ``ranges``, its ``etag`` and ``last_modified``, and whether the latter is
    ``settled``: long enough ago that another change would have moved it.
    """

    url: str = field(repr=False)
    shown: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    size: int = -1
    ranges: bool = False
    etag: str | None = None
    last_modified: str | None = None
    settled: bool = False
    redirected: str | None = field(default=None, repr=False)

    @property
    def strong_etag(self) -> str | None:
        """The ETag, if it promises the same bytes (RFC 9110 §8.8.1)."""
        return self.etag if self.etag and not self.etag.startswith("W/") else None

    @property
    def pinned(self) -> bool:
        """Whether two ranges with the same validator are surely of the same bytes."""
        return bool(self.strong_etag or (self.etag is None and self.settled))


class HttpClient:
    """One pool of connections. Safe to use from several threads."""

    def __init__(self, user_agent: str) -> None:
        self._pools: dict[str | None, urllib3.PoolManager] = {}
        self._headers = {"User-Agent": user_agent, "Accept": "*/*", "Accept-Encoding": "identity"}
        self._live: set[urllib3.BaseHTTPResponse] = set()
        self._lock = Lock()

    def close(self) -> None:
        """Close all connections; a read that waits in another thread ends at once."""
        with self._lock:
            live = list(self._live)
        for response in live:
            with suppress(HTTPError, OSError, ValueError):
                response.shutdown()
        for pool in self._pools.values():
            pool.clear()

    def _pool(self, url: str) -> urllib3.PoolManager:
        """The connections for a URL: direct, or through the proxy that ``HTTPS_PROXY`` and its like name for it."""
        parts = urlsplit(url)
        proxies = getproxies()
        proxy = proxies.get(parts.scheme) or proxies.get("all")
        if proxy and proxy_bypass(parts.netloc.rpartition("@")[2], proxies):
            proxy = None
        with self._lock:
            if proxy not in self._pools:
                timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=STALL_SECONDS)
                self._pools[proxy] = _connect_by(proxy, num_pools=16, maxsize=64, timeout=timeout, retries=False)
            return self._pools[proxy]

    def probe(self, file: HttpFile) -> None:
        """Ask for the first byte to learn size, validators and whether ranges work, and fill them in.

        Not HEAD: servers forbid it, or answer it differently from GET.
        """
        with self._open(file, {"Range": "bytes=0-0"}) as response:
            if response.status == 416:
                total = _UNSATISFIED.fullmatch(response.headers.get("Content-Range", ""))
                if not total or int(total.group(1)):
                    raise SourceUnavailable(f"{file.shown} answered 416 to its first byte", retryable=False)
                file.size, file.ranges = 0, False
            elif response.status == 206:
                file.size, file.ranges = _content_range(file, response)[2], True
            else:
                length = response.headers.get("Content-Length", "")
                if not _LENGTH.fullmatch(length):
                    raise SourceUnavailable(f"{file.shown} does not say how long it is", retryable=False)
                file.size, file.ranges = int(length), False
            file.etag = response.headers.get("ETag")
            file.last_modified = response.headers.get("Last-Modified")
            file.settled = _is_settled(file.last_modified, response.headers.get("Date"))

    def read_range(self, file: HttpFile, start: int, stop: int) -> Iterator[bytes]:
        """The bytes ``[start, stop)`` of a probed file. May end early, or run over: the engine counts."""
        headers = {"Range": f"bytes={start}-{stop - 1}", **self._condition(file)}
        with self._open(file, headers) as response:
            if response.status == 200:
                raise RangesIgnored
            if response.status != 206:
                raise SourceChanged(f"{file.shown} no longer has the bytes from {start}")
            first, last, total = _content_range(file, response)
            if total != file.size:
                raise SourceChanged(f"{file.shown} was {file.size} bytes long and is now {total}")
            if first != start or last >= stop:
                raise SourceUnavailable(f"{file.shown} answered another range than it was asked for", retryable=False)
            self._check_same(file, response)
            yield from self._body(file, response)

    def read_all(self, file: HttpFile) -> Iterator[bytes]:
        """The whole of a probed file, in one stream. As ``read_range``."""
        with self._open(file, self._condition(file)) as response:
            if response.status != 200:
                raise SourceUnavailable(f"{file.shown} answered {response.status} to a plain request", retryable=False)
            length = response.headers.get("Content-Length")
            if length is not None and length != str(file.size):
                raise SourceChanged(f"{file.shown} was {file.size} bytes long and is now {length:.20}")
            self._check_same(file, response)
            yield from self._body(file, response)

    def _condition(self, file: HttpFile) -> dict[str, str]:
        if file.strong_etag:
            return {"If-Match": file.strong_etag}
        return {"If-Unmodified-Since": file.last_modified} if file.last_modified else {}

    def _check_same(self, file: HttpFile, response: urllib3.BaseHTTPResponse) -> None:
        etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
        # Not every server keeps If-Match; the answer must carry the validator that was seen first.
        same = etag == file.etag if file.strong_etag or etag else modified == file.last_modified
        if not same:
            raise SourceChanged(f"{file.shown} changed while it was being read", hint="run it again")

    def _body(self, file: HttpFile, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        with _translated(file):
            yield from response.stream(PIECE, decode_content=False)

    @contextmanager
    def _open(self, file: HttpFile, headers: dict[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
        """A checked answer to GET: 200, 206 or 416 in identity encoding. Follows redirects by hand."""
        response = self._follow(file, headers)
        with self._lock:
            self._live.add(response)
        try:
            _check_status(file, response)
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding.lower() != "identity":
                raise SourceUnavailable(f"{file.shown} was sent in {encoding:.40} encoding", retryable=False)
            yield response
        finally:
            with self._lock:
                self._live.discard(response)
            if response.length_remaining == 0:  # the next request may use the connection; otherwise it may not
                response.release_conn()
            else:
                response.close()

    def _follow(self, file: HttpFile, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        if file.redirected:
            response = self._send(file, file.redirected, headers)
            if response.status not in (401, 403, 404, 410, *_REDIRECTS):
                return response
            # A signed address has run out: ask the origin for a new one.
            response.close()
            file.redirected = None
        url = file.url
        for _ in range(MAX_REDIRECTS + 1):
            response = self._send(file, url, headers)
            if response.status not in _REDIRECTS:
                file.redirected = url if url != file.url else None
                return response
            location = response.headers.get("Location", "")
            response.close()  # not drained: a redirect's body is nobody's
            url = _redirect(file, url, location)
        raise SourceUnavailable(f"{file.shown} redirects more than {MAX_REDIRECTS} times", retryable=False)

    def _send(self, file: HttpFile, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        own = file.headers if _origin(url) == _origin(file.url) else {}
        with _translated(file):
            return self._pool(url).request(
                "GET",
                url,
                headers={**self._headers, **headers, **own},
                preload_content=False,
                decode_content=False,
                redirect=False,
            )


def _connect_by(proxy: str | None, **options: Any) -> urllib3.PoolManager:
    if proxy is None:
        return urllib3.PoolManager(**options)
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    userinfo, _, host = parts.netloc.rpartition("@")
    headers = urllib3.make_headers(proxy_basic_auth=unquote(userinfo)) if userinfo else None
    return urllib3.ProxyManager(parts._replace(netloc=host).geturl(), proxy_headers=headers, **options)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _redirect(file: HttpFile, url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        scheme, host, _ = _origin(target)
    except ValueError:
        target, scheme, host = "", "", None
    if not location or not host or scheme not in ("http", "https") or "\\" in target:
        raise SourceUnavailable(f"{file.shown} redirects to something that is not a web address", retryable=False)
    if scheme == "http" and urlsplit(url).scheme == "https":
        raise SourceUnavailable(f"{file.shown} redirects from https to plain http", retryable=False)
    return target


def _content_range(file: HttpFile, response: urllib3.BaseHTTPResponse) -> tuple[int, int, int]:
    """First byte, last byte and total of a 206."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if not match:
        raise SourceUnavailable(f"{file.shown} answered a range without saying which", retryable=False)
    first, last, total = (int(group) for group in match.groups())
    if not first <= last < total:
        raise SourceUnavailable(f"{file.shown} answered an impossible range", retryable=False)
    return first, last, total


def _is_settled(modified: str | None, date: str | None) -> bool:
    """Whether a Last-Modified may be used as a strong validator: a minute before Date (RFC 9110 §8.8.2.2)."""
    try:
        return (parsedate_to_datetime(date or "") - parsedate_to_datetime(modified or "")).total_seconds() >= 60
    except (ValueError, TypeError, OverflowError):
        return False


def _check_status(file: HttpFile, response: urllib3.BaseHTTPResponse) -> None:
    status = response.status
    if status in (200, 206, 416):
        return
    if status in (404, 410):
        raise SourceNotFound(f"{file.shown} does not exist (HTTP {status})", hint="check the URL")
    if status in (401, 403, 407):
        raise SourceUnauthorized(f"{file.shown} may not be read (HTTP {status})", hint="check the credentials")
    if status == 412:
        raise SourceChanged(f"{file.shown} changed while it was being read", hint="run it again")
    error = SourceUnavailable(
        f"{file.shown} answered HTTP {status}", retryable=status in (408, 425, 429) or status >= 500
    )
    error.retry_after = _retry_after(response.headers.get("Retry-After"))
    raise error


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, from either form of the header, at most two minutes; None for what is neither."""
    if value is None:
        return None
    if _LENGTH.fullmatch(value):
        return min(float(value), MAX_RETRY_AFTER)
    try:
        seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


@contextmanager
def _translated(file: HttpFile) -> Iterator[None]:
    """Turn what the network says into a SourceError, once."""
    try:
        yield
    except SourceError:
        raise
    except LocationParseError:  # not chained: its text quotes what may be a password
        raise SourceUnavailable(
            f"{file.shown} could not be read: an address is malformed", hint="check HTTPS_PROXY and its like"
        ) from None
    except SSLError as error:
        raise SourceUnavailable(
            f"no trusted connection to {file.shown}: {_reason(error)}",
            hint="check the certificate, or name its authority in SSL_CERT_FILE",
            retryable=False,
        ) from error
    except (HTTPError, OSError, ValueError) as error:
        reason = _reason(error)
        if isinstance(error, ProxyError):
            raise SourceUnavailable(
                f"{file.shown} could not be read through the proxy: {reason}", hint="check HTTPS_PROXY and its like"
            ) from error
        raise SourceUnavailable(
            f"{file.shown} could not be read: {reason}", hint="check the URL and the network"
        ) from error


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words; urllib3's own texts name objects and addresses in memory."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        inner = getattr(current, "reason", None)
        current = current.__cause__ or current.__context__ or (inner if isinstance(inner, BaseException) else None)
    for cause in reversed(chain):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"{cause.verify_message}"
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return cause.reason.lower().replace("_", " ")
        if isinstance(cause, socket.gaierror):
            return "its host name is not known"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
    if isinstance(error, ReadTimeoutError):
        return f"no byte came for {STALL_SECONDS:.0f} seconds"
    if isinstance(error, UrllibTimeoutError):
        return f"no answer within {CONNECT_SECONDS:.0f} seconds"
    return "the connection broke off"
