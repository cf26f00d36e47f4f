"""Asks for files and ranges of them, follows redirects by hand, and says in one sentence what went wrong."""

import errno
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final
from urllib.parse import urlencode

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, InvalidHeader, LocationParseError, ProxyError, ReadTimeoutError, SSLError
from urllib3.exceptions import TimeoutError as UrllibTimeoutError

from modelstore.errors import ModelStoreError, SourceChanged, SourceCorrupt, SourceUnavailable
from modelstore.sources.base import RangesIgnored
from modelstore.transfer import limits
from modelstore.transfer.http.answers import (
    REDIRECTS,
    Document,
    check_answer,
    check_framing,
    check_promised,
    check_same,
    content_range,
    declared_length,
    empty_size,
    given_name,
    is_settled,
    redirect_target,
)
from modelstore.transfer.http.file import Access, HttpFile, origin_of
from modelstore.transfer.http.pool import Pools, TooSlow
from modelstore.transfer.http.redaction import hide_queries

__all__ = ["HttpClient"]

#: Bytes per read: large enough for few calls, small enough that 64 connections do not show in the resident size.
PIECE: Final = 512 * 1024
#: What this machine, and not the server, has too little of.
_SCARCE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


class HttpClient:
    """Connections to any number of servers. Safe to use from several threads.

    ``ca_bundle`` is a file of certificate authorities that are trusted besides the system's.
    """

    def __init__(self, user_agent: str, ca_bundle: str | None = None) -> None:
        hide_queries()
        self._pools = Pools(ca_bundle)
        self._headers = {"User-Agent": user_agent, "Accept": "*/*", "Accept-Encoding": "identity"}

    def close(self) -> None:
        """Close all connections; a read that waits in another thread ends at once."""
        self._pools.close()

    def probe(self, file: HttpFile) -> None:
        """Ask for the first byte to learn size, validators and whether ranges work, and fill them in.

        Not HEAD: servers forbid it, or answer it differently from GET.
        """
        with self._open(file, {"Range": "bytes=0-0"}) as response:
            file.ranges = response.status == 206
            if response.status == 416:
                file.size = empty_size(file, response)
            elif response.status == 206:
                first, last, file.size = content_range(file, response)
                if (first, last) != (0, 0):
                    raise _another_range(file)
                if declared_length(response) == 1:
                    list(self._body(file, response))  # so that the connection can be used again
            else:
                _refuse_web_page(file, response)
                length = declared_length(response)
                if length is None:
                    raise SourceUnavailable(f"{file.shown} does not say how long it is", retryable=False)
                file.size = length
            file.etag = response.headers.get("ETag")
            file.last_modified = response.headers.get("Last-Modified")
            file.settled = is_settled(file.last_modified, response.headers.get("Date"))
            file.name = given_name(response.headers.get("Content-Disposition"))

    def ask(
        self,
        file: HttpFile,
        headers: Mapping[str, str],
        *,
        most: int,
        form: Mapping[str, str] | None = None,
        accept: tuple[int, ...] = (200,),
    ) -> Document:
        """A small document of at most ``most`` bytes, with a status to ``accept``. With ``form`` it is posted for.

        Raises a ``SourceError``.
        """
        body = urlencode(form).encode() if form is not None else None
        if body is not None:
            headers = {**headers, "Content-Type": "application/x-www-form-urlencoded"}
        response = self._follow(file, headers, body)
        try:
            with _translated(file):
                if response.status not in accept:
                    check_answer(file, response)
                    raise SourceUnavailable(f"{file.shown} answered HTTP {response.status}", retryable=False)
                check_framing(file, response)
                content = response.read(most + 1, decode_content=False)
                if len(content) > most:
                    raise SourceUnavailable(f"{file.shown} answered with more than {most} bytes", retryable=False)
                return Document(response.status, response.headers, content)
        finally:
            self._pools.done(response)

    def read(self, file: HttpFile, start: int, stop: int, *, ranges: bool) -> Iterator[bytes]:
        """The bytes ``[start, stop)`` of a probed file, or of one whose size was known.

        Without ``ranges`` they are the whole. That is asked for as one: servers and caches answer it more readily than
        a range.
        """
        if ranges and (start, stop) != (0, file.size):
            return self.read_range(file, start, stop)
        return self.read_all(file)

    def read_range(self, file: HttpFile, start: int, stop: int) -> Iterator[bytes]:
        """The bytes ``[start, stop)`` of a probed file. May end early, or run over: the engine counts."""
        headers = {"Range": f"bytes={start}-{stop - 1}", **file.condition}
        with self._open(file, headers) as response:
            if response.status == 200:
                raise RangesIgnored
            if response.status != 206:
                raise SourceChanged(f"{file.shown} no longer has the bytes from {start}")
            first, last, total = content_range(file, response)
            if total != file.size:
                raise _other_size(file, total)
            if first != start or last >= stop:
                raise _another_range(file)
            check_same(file, response)
            yield from self._body(file, response)

    def read_all(self, file: HttpFile) -> Iterator[bytes]:
        """The whole of a probed file, in one stream. As ``read_range``."""
        with self._open(file, file.condition) as response:
            if response.status != 200:
                raise SourceUnavailable(f"{file.shown} answered {response.status} to a plain request", retryable=False)
            length = declared_length(response)
            if length not in (None, file.size):
                raise _other_size(file, length)
            check_same(file, response)
            yield from self._body(file, response)

    def _body(self, file: HttpFile, response: BaseHTTPResponse) -> Iterator[bytes]:
        with _translated(file):
            while piece := response.read1(PIECE, decode_content=False):
                yield piece
                del piece  # before the next one is there

    @contextmanager
    def _open(self, file: HttpFile, headers: Mapping[str, str]) -> Iterator[BaseHTTPResponse]:
        """A checked answer to GET: 200, 206 or 416 in identity encoding. Follows redirects by hand."""
        response = self._ask_again(file, headers) or self._follow(file, headers)
        try:
            with _translated(file):
                check_answer(file, response)
            yield response
        finally:
            self._pools.done(response)

    def _ask_again(self, file: HttpFile, headers: Mapping[str, str]) -> BaseHTTPResponse | None:
        """The answer of where a redirect led before; None if there is none, or it is no good any more."""
        known = file.redirected
        if not known:
            return None
        with suppress(SourceUnavailable):
            response = self._send(file, known, file.access, headers)
            if response.status < 300 or response.status in (412, 416, 429):
                return response
            self._pools.done(response)
        # A signature has run out, or a server has gone: the origin may name another.
        if file.redirected == known:  # another thread may know one already
            file.redirected = None
        return None

    def _follow(self, file: HttpFile, headers: Mapping[str, str], body: bytes | None = None) -> BaseHTTPResponse:
        """The answer where all redirects end. What is refused for want of fresh credentials is asked once more."""
        refused = file.access
        response, own = self._follow_from(file, refused, headers, body)
        # 400: S3's ExpiredToken.
        challenge = response.headers.get("WWW-Authenticate", "")
        if own and response.status in (400, 401, 403) and file.renew_access(refused, challenge):
            self._pools.done(response)
            response, _ = self._follow_from(file, file.access, headers, body)
        return response

    def _follow_from(
        self, file: HttpFile, access: Access, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[BaseHTTPResponse, bool]:
        """The answer where all redirects end, and whether it is the URL's own."""
        url = access.url
        for hop in range(limits.MAX_REDIRECTS + 1):
            response = self._send(file, url, access, headers, body)
            if hop == 0:
                self._check_first(file, response)
            if response.status not in REDIRECTS:
                file.redirected = url if hop else None
                return response, hop == 0
            location = response.headers.get("Location", "")
            self._pools.done(response)
            if body is not None:
                raise SourceUnavailable(f"{file.shown} redirects what was posted to it", retryable=False)
            url = redirect_target(file, url, location)
        raise SourceUnavailable(f"{file.shown} redirects more than {limits.MAX_REDIRECTS} times", retryable=False)

    def _check_first(self, file: HttpFile, response: BaseHTTPResponse) -> None:
        try:
            check_promised(file, response)
        except SourceChanged:
            self._pools.done(response)
            raise

    def _send(
        self, file: HttpFile, url: str, access: Access, headers: Mapping[str, str], body: bytes | None = None
    ) -> BaseHTTPResponse:
        with _translated(file):
            own = access.headers if origin_of(url) == origin_of(access.url) else {}
            return self._pools.of(url).urlopen(
                "GET" if body is None else "POST",
                url,
                body=body,
                headers={**self._headers, **headers, **own},
                preload_content=False,
                decode_content=False,
                redirect=False,
            )


def _other_size(file: HttpFile, size: int | None) -> SourceChanged | SourceCorrupt:
    if file.immutable:
        return SourceCorrupt(f"{file.shown} has {size} bytes and not {file.size}")
    return SourceChanged(f"{file.shown} was {file.size} bytes long and is now {size}")


def _another_range(file: HttpFile) -> SourceUnavailable:
    return SourceUnavailable(f"{file.shown} answered another range than it was asked for", retryable=False)


def _refuse_web_page(file: HttpFile, response: BaseHTTPResponse) -> None:
    """A login page, or a proxy's notice, comes with status 200 whatever was asked for."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind == "text/html" and not file.shown.partition("?")[0].endswith((".html", ".htm")):
        raise SourceUnavailable(
            f"{file.shown} was answered with a web page",
            hint="see whether a login or a proxy is in the way",
            retryable=False,
        )


@contextmanager
def _translated(file: HttpFile) -> Iterator[None]:
    """Turn what the network says into a SourceError, once."""
    try:
        yield
    except ModelStoreError:
        raise
    except LocationParseError:  # not chained: its text quotes what may be a password
        raise SourceUnavailable(
            f"{file.shown} could not be read: an address is malformed",
            hint="check HTTPS_PROXY and its like",
            retryable=False,
        ) from None
    except InvalidHeader as error:
        raise SourceUnavailable(f"{file.shown} was sent with two different lengths", retryable=False) from error
    except SSLError as error:
        raise SourceUnavailable(
            f"no trusted connection to {file.shown}: {_reason(error)}",
            hint="check the certificate, or name its authority in SSL_CERT_FILE",
            retryable=not _has(error, ssl.SSLCertVerificationError),
        ) from error
    except ValueError:  # not chained: its text quotes the address, or a header
        raise SourceUnavailable(
            f"{file.shown} could not be asked for: its address or a header is malformed", retryable=False
        ) from None
    except (HTTPError, OSError) as error:
        reason = _reason(error)
        if isinstance(error, ProxyError):
            raise SourceUnavailable(
                f"{file.shown} could not be read through the proxy: {reason}", hint="check HTTPS_PROXY and its like"
            ) from error
        if (number := _errno(error)) in _SCARCE:
            scarce = SourceUnavailable(
                f"{file.shown} could not be read: {os.strerror(number).lower()}",
                hint="allow this process more (ulimit -n), or use fewer --connections",
            )
            scarce.overloaded = True
            raise scarce from error
        unavailable = SourceUnavailable(
            f"{file.shown} could not be read: {reason}", hint="check the URL and the network"
        )
        unavailable.overloaded = isinstance(error, UrllibTimeoutError)
        raise unavailable from error


def _errno(error: BaseException) -> int:
    """The innermost error number, 0 if there is none."""
    return next((cause.errno for cause in reversed(_chain(error)) if isinstance(cause, OSError) and cause.errno), 0)


def _chain(error: BaseException) -> list[BaseException]:
    """An error and what is behind it, outermost first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        inner = getattr(current, "reason", None)
        current = current.__cause__ or current.__context__ or (inner if isinstance(inner, BaseException) else None)
    return chain


def _has(error: BaseException, kind: type[BaseException]) -> bool:
    return any(isinstance(cause, kind) for cause in _chain(error))


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words; urllib3's own texts name objects and addresses in memory."""
    for cause in reversed(_chain(error)):
        if isinstance(cause, TooSlow):
            return str(cause)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"{cause.verify_message}"
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return cause.reason.lower().replace("_", " ")
        if isinstance(cause, socket.gaierror):
            return "its host name is not known"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
    if isinstance(error, ReadTimeoutError):
        return f"no byte came for {limits.STALL_SECONDS:g} seconds"
    if isinstance(error, UrllibTimeoutError):
        return f"no answer within {limits.CONNECT_SECONDS:g} seconds"
    return "the connection broke off"
