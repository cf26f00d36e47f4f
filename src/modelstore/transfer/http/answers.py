"""What an answer must be before it is believed: status, encoding, range, length, validator (RFC 9110 §13 to §15)."""

import re
import time
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urljoin, urlsplit

from urllib3 import BaseHTTPResponse

from modelstore.errors import SourceChanged, SourceNotFound, SourceUnauthorized, SourceUnavailable
from modelstore.transfer import limits
from modelstore.transfer.http.addresses import refuse_inside
from modelstore.transfer.http.file import HttpFile, origin_of

__all__ = [
    "REDIRECTS",
    "check_answer",
    "check_same",
    "content_range",
    "declared_length",
    "empty_size",
    "is_settled",
    "redirect_target",
]

REDIRECTS: Final = (301, 302, 303, 307, 308)
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_UNSATISFIED: Final = re.compile(r"bytes \*/(\d{1,18})")
_LENGTH: Final = re.compile(r"\d{1,18}")
#: The code in an S3 error document (Amazon S3 API, "Error responses").
_S3_CODE: Final = re.compile(rb"<Code>([A-Za-z]{1,64})</Code>")
_ERROR_BYTES: Final = 4096
_S3_HINTS: Final = {
    "RequestTimeTooSkewed": "set this machine's clock",
    "ExpiredToken": "renew the credentials",
    "InvalidObjectState": "restore the object from its archive tier first",
}


def check_answer(file: HttpFile, response: BaseHTTPResponse) -> None:
    """Let only 200, 206 and 416 through, in identity encoding and framed in one way."""
    status = response.status
    if status not in (200, 206, 416):
        raise _refusal(file, response)
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise SourceUnavailable(f"{file.shown} was sent in {encoding:.40} encoding", retryable=False)
    lengths = response.headers.getlist("Content-Length")
    if len(set(lengths)) > 1 or (lengths and response.headers.get("Transfer-Encoding")):
        # Two readers of such an answer see different ends (request smuggling, RFC 9112 §6.3).
        raise SourceUnavailable(f"{file.shown} was sent with two different lengths", retryable=False)
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        raise SourceUnavailable(f"{file.shown} was sent with a length that is no number", retryable=False)


def _refusal(file: HttpFile, response: BaseHTTPResponse) -> Exception:
    status, code = response.status, _s3_code(response)
    said = f"HTTP {status}, {code}" if code else f"HTTP {status}"
    if status in (404, 410):
        return SourceNotFound(f"{file.shown} does not exist ({said})", hint="check the URL")
    if status == 412:
        return SourceChanged(f"{file.shown} changed while it was being read", hint="run it again")
    if status in (401, 403, 407) or code == "ExpiredToken":
        hint = _S3_HINTS.get(code, "check the credentials")
        return SourceUnauthorized(f"{file.shown} may not be read ({said})", hint=hint)
    # S3 answers 400 RequestTimeout to a connection that idled.
    retryable = status in (408, 425, 429) or status >= 500 or code == "RequestTimeout"
    error = SourceUnavailable(f"{file.shown} answered {said}", retryable=retryable)
    error.overloaded = status in (429, 503)
    error.retry_after = retry_after(response.headers.get("Retry-After"))
    return error


def _s3_code(response: BaseHTTPResponse) -> str:
    """The code that S3 gives a refusal, or nothing. Never more than a little is read, and never the text."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
    if not kind.endswith("/xml"):
        return ""
    match = _S3_CODE.search(response.read(_ERROR_BYTES, decode_content=False))
    return match[1].decode() if match else ""


def retry_after(value: str | None) -> float | None:
    """Seconds to wait, from either form of the header, at most two minutes; None for what is neither."""
    if value is None:
        return None
    if _LENGTH.fullmatch(value):
        return min(float(value), limits.MAX_RETRY_AFTER)
    try:
        seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), limits.MAX_RETRY_AFTER)


def content_range(file: HttpFile, response: BaseHTTPResponse) -> tuple[int, int, int]:
    """First byte, last byte and total of a 206."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if response.headers.get("Content-Type", "").lower().startswith("multipart/"):
        match = None  # the range is somewhere inside
    if not match:
        raise SourceUnavailable(f"{file.shown} answered a range without saying which", retryable=False)
    first, last, total = (int(group) for group in match.groups())
    length = declared_length(response)
    if not first <= last < total or length not in (None, last - first + 1):
        raise SourceUnavailable(f"{file.shown} answered an impossible range", retryable=False)
    return first, last, total


def declared_length(response: BaseHTTPResponse) -> int | None:
    """Bytes that the body is said to have. ``check_answer`` has seen to it that it is a number."""
    lengths = response.headers.getlist("Content-Length")
    return int(lengths[0]) if lengths else None


def empty_size(file: HttpFile, response: BaseHTTPResponse) -> int:
    """The size of 0 that a 416 to the first byte means, if it says so."""
    total = _UNSATISFIED.fullmatch(response.headers.get("Content-Range", ""))
    if not total or int(total[1]):
        raise SourceUnavailable(f"{file.shown} answered 416 to its first byte", retryable=False)
    return 0


def check_same(file: HttpFile, response: BaseHTTPResponse) -> None:
    """Refuse another version: not every server keeps If-Match, so the answer must carry the validator seen first."""
    etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
    same = etag == file.etag if file.strong_etag or etag else modified == file.last_modified
    if not same:
        raise SourceChanged(f"{file.shown} changed while it was being read", hint="run it again")


def is_settled(modified: str | None, date: str | None) -> bool:
    """Whether a Last-Modified may be used as a strong validator: a minute before Date (RFC 9110 §8.8.2.2)."""
    try:
        return (parsedate_to_datetime(date or "") - parsedate_to_datetime(modified or "")).total_seconds() >= 60
    except (ValueError, TypeError, OverflowError):
        return False


def redirect_target(file: HttpFile, url: str, location: str) -> str:
    """Where a redirect from ``url`` leads: to the web, not from https to http, and not to this machine's inside."""
    try:
        target = urljoin(url, location)
        scheme, host, _ = origin_of(target)
    except ValueError:
        target, scheme, host = "", "", None
    if not location or not host or scheme not in ("http", "https") or "\\" in target:
        raise SourceUnavailable(f"{file.shown} redirects to something that is not a web address", retryable=False)
    if scheme == "http" and urlsplit(url).scheme == "https":
        raise SourceUnavailable(f"{file.shown} redirects from https to plain http", retryable=False)
    if host != urlsplit(url).hostname:
        refuse_inside(file.shown, host, urlsplit(url).hostname or "")
    return target
