"""What an answer must be before it is believed: status, encoding, range, length, validator (RFC 9110 §13 to §15)."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from email.utils import collapse_rfc2231_value, parsedate_to_datetime
from typing import Final
from urllib.parse import urljoin, urlsplit

from urllib3 import BaseHTTPResponse

from modelstore.errors import (
    BlobArchived,
    SourceChanged,
    SourceCorrupt,
    SourceNotFound,
    SourceUnauthorized,
    SourceUnavailable,
)
from modelstore.transfer import limits
from modelstore.transfer.http.addresses import refuse_inside
from modelstore.transfer.http.file import HttpFile, origin_of

__all__ = [
    "REDIRECTS",
    "Document",
    "check_answer",
    "check_framing",
    "check_promised",
    "check_same",
    "content_range",
    "declared_length",
    "empty_size",
    "given_name",
    "is_settled",
    "redirect_target",
]

REDIRECTS: Final = (301, 302, 303, 307, 308)
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
#: The Hub's, such as GatedRepo.
_CODE: Final = re.compile(r"[A-Za-z]{1,64}")
_UNSATISFIED: Final = re.compile(r"bytes \*/(\d{1,18})")
_LENGTH: Final = re.compile(r"\d{1,18}")
#: The code in an S3 error document (Amazon S3 API, "Error responses").
_S3_CODE: Final = re.compile(rb"<Code>([A-Za-z]{1,64})</Code>")
_ERROR_BYTES: Final = 4096
#: Seconds until the quota is new, as the Hub says it (draft-ietf-httpapi-ratelimit-headers: "name";r=0;t=55).
_RATE_LIMIT: Final = re.compile(r";\s*t=(\d{1,9})\b")
_HINTS: Final = {
    "RequestTimeTooSkewed": "set this machine's clock",
    "ExpiredToken": "renew the credentials",
    # The Hub's (huggingface_hub, utils/_http.py).
    "RepoNotFound": "check the name, or set HF_TOKEN if it is private",
    "RevisionNotFound": "check the revision",
}
#: With these the Hub answers 401, too, so as not to say what is there.
_ABSENT: Final = frozenset(("RepoNotFound", "RevisionNotFound", "EntryNotFound"))


@dataclass(frozen=True, slots=True)
class Document:
    """A small answer: its status, its headers (case-insensitive) and its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def check_answer(file: HttpFile, response: BaseHTTPResponse) -> None:
    """Let only 200, 206 and 416 through, in identity encoding and framed in one way."""
    if response.status not in (200, 206, 416):
        raise _refusal(file, response)
    check_framing(file, response)


def check_framing(file: HttpFile, response: BaseHTTPResponse) -> None:
    """Refuse an answer whose bytes could be read in two ways."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() not in ("identity", file.encoding.lower()):
        raise SourceUnavailable(f"{file.shown} was sent in {encoding:.40} encoding", retryable=False)
    lengths = response.headers.getlist("Content-Length")
    if len(set(lengths)) > 1 or (lengths and response.headers.get("Transfer-Encoding")):
        # Two readers of such an answer see different ends (request smuggling, RFC 9112 §6.3).
        raise SourceUnavailable(f"{file.shown} was sent with two different lengths", retryable=False)
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        raise SourceUnavailable(f"{file.shown} was sent with a length that is no number", retryable=False)


def _refusal(file: HttpFile, response: BaseHTTPResponse) -> Exception:
    status, code = response.status, _error_code(response)
    said = f"HTTP {status}, {code}" if code else f"HTTP {status}"
    if code == "InvalidObjectState":
        return BlobArchived(f"{file.shown} is in an archive tier ({said})", hint="restore the object first")
    if status in (404, 410) or code in _ABSENT:
        return SourceNotFound(f"{file.shown} does not exist ({said})", hint=_HINTS.get(code, "check the URL"))
    if status == 412 and file.condition:
        return SourceChanged(f"{file.shown} changed while it was being read", hint="run it again")
    if status == 407:
        return SourceUnauthorized(
            f"the proxy does not let {file.shown} through ({said})", hint="check HTTP_PROXY and its like"
        )
    if status in (401, 403) or code == "ExpiredToken":
        hint = _HINTS.get(code, file.hint)
        return SourceUnauthorized(f"{file.shown} may not be read ({said})", hint=hint)
    # S3 answers 400 RequestTimeout to a connection that idled.
    retryable = status in (408, 425, 429) or status >= 500 or code == "RequestTimeout"
    error = SourceUnavailable(f"{file.shown} answered {said}", retryable=retryable)
    error.overloaded = status in (429, 503)
    quota = _RATE_LIMIT.search(response.headers.get("RateLimit", "")) if status == 429 else None
    error.retry_after = retry_after(response.headers.get("Retry-After", quota and quota[1]))
    return error


def _error_code(response: BaseHTTPResponse) -> str:
    """The code that S3 or the Hub gives a refusal, or nothing. Never more than a little is read, and never the text."""
    if _CODE.fullmatch(code := response.headers.get("X-Error-Code", "")):
        return code
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
    if file.immutable:
        return
    etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
    same = etag == file.etag if file.strong_etag or etag else modified == file.last_modified
    if not same:
        raise SourceChanged(f"{file.shown} changed while it was being read", hint="run it again")


def check_promised(file: HttpFile, response: BaseHTTPResponse) -> None:
    """Refuse an answer whose headers contradict what was said of the file before."""
    for name, expected in file.promised.items():
        found = response.headers.get(name) if response.status < 400 else None
        if found is not None and found.removeprefix("W/").strip('"') != expected:
            raise SourceChanged(f"{file.shown} is not what was listed ({name} is another)", hint="run it again")


def given_name(disposition: str | None) -> str | None:
    """The file name in a Content-Disposition (RFC 6266), as it stands there; None if there is none."""
    if disposition is None:
        return None
    message = Message()
    try:
        message["Content-Disposition"] = disposition
        found = message.get_params(header="Content-Disposition") or []
        names = [value for name, value in found if name.lower() == "filename"]
        # RFC 6266 §4.3: filename* counts before filename; it is put last when it is decoded.
        return collapse_rfc2231_value(names[-1]) if names else None
    except (ValueError, LookupError, TypeError) as error:
        raise SourceCorrupt("the server names the file in a way that cannot be read") from error


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
    if "%" in host and ":" not in host:  # two parsers could read it as two hosts
        raise SourceUnavailable(f"{file.shown} redirects to something that is not a web address", retryable=False)
    if scheme == "http" and urlsplit(url).scheme == "https":
        raise SourceUnavailable(f"{file.shown} redirects from https to plain http", retryable=False)
    if host != urlsplit(url).hostname:
        refuse_inside(file.shown, host, urlsplit(url).hostname or "")
    return target
