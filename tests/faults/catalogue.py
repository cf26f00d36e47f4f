"""The 26 faults, in all the forms that they are tried in, and what must come of each.

`Fault.number` is that of the table of HTTP faults; the names say the form. What must come of it is either the right
bytes (`right`) or one of the `errors`; a fault that a client can survive lists no error, one that it must refuse is
not `right`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from modelstore.errors import (
    BlobArchived,
    SourceChanged,
    SourceCorrupt,
    SourceError,
    SourceNotFound,
    SourceUnauthorized,
)
from modelstore.errors import SourceUnavailable as Unavailable
from tests.faults import bend
from tests.faults.bend import Bend

MIB = 1 << 20
Phase = Literal["probe", "first", "mid", "border", "between", "last", "second", "resume"]
Mode = Literal["ranges", "stream"]
#: probe: the first request of all. first: the first byte of the data. border: the last byte of a chunk. between: the
#: first byte of the next. second: in the middle of the second of two files. resume: in a fetch that goes on where one
#: was killed.
PHASES: tuple[Phase, ...] = ("probe", "first", "mid", "border", "between", "last", "second", "resume")
DATA: tuple[Phase, ...] = PHASES[1:]
FEW: tuple[Phase, ...] = ("first", "mid", "between", "second", "resume")
FLAPS: tuple[Phase, ...] = PHASES[:-1]  # where even the fetch that is killed would fail
LONG: tuple[Phase, ...] = ("first", "mid", "between", "second")  # where the bytes asked for are many, and not the last
RANGES: tuple[Mode, ...] = ("ranges",)
REFUSED = (Unavailable, SourceChanged)
SUSPECT = (Unavailable, SourceChanged, SourceCorrupt)
DENIED = (SourceUnauthorized, Unavailable)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One form of a fault.

    ``kind``: "body" strikes the bytes at the phase's position; "answer" strikes the whole answer to a request that
    begins there; "server" is how the server always is, and its body is cut once at the position. ``times`` is how
    often it strikes, None for always. ``right``, ``errors``: what may come of it. ``again``: how many times the size
    may be sent besides the size itself, where ranges work. ``loss``: bytes that one strike may lose. ``gap``: seconds
    that the client must wait after the strike.
    """

    number: int
    name: str
    bend: Bend
    kind: Literal["body", "answer", "server"] = "answer"
    times: int | None = 1
    right: bool = True
    errors: tuple[type[SourceError | BlobArchived], ...] = ()
    phases: tuple[Phase, ...] = PHASES
    modes: tuple[Mode, ...] = ("ranges", "stream")
    again: int = 0
    loss: int = 0
    gap: float = 0.0
    pinned: bool = False
    redirected: bool = False
    asks: int | None = None  # struck requests at most: a refusal that will not change is not asked for again and again
    says: str = ""  # a word that the error must have
    resource: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.number:02}-{self.name}"


def survived(number: int, name: str, how: Bend, **fields: Any) -> Fault:
    """The right bytes must come."""
    return Fault(number=number, name=name, bend=how, **fields)


def fatal(number: int, name: str, how: Bend, *errors: type[SourceError | BlobArchived], **fields: Any) -> Fault:
    """It never ends, and must be one of these errors."""
    defaults: dict[str, Any] = {"times": None, "right": False, "phases": FEW}
    return Fault(number=number, name=name, bend=how, errors=errors or (Unavailable,), **{**defaults, **fields})


def either(number: int, name: str, how: Bend, *errors: type[SourceError | BlobArchived], **fields: Any) -> Fault:
    """The right bytes or one of these errors: a matter of policy. Never wrong bytes."""
    return Fault(number=number, name=name, bend=how, errors=errors or SUSPECT, **fields)


#: For what never ends: the same again and again, so each time may be shorter.
LIMITED = {"FETCH_TRIES": 1, "STALL_SECONDS": 0.4, "HEADER_SECONDS": 0.4, "SLOW_SECONDS": 0.6}
WEAK = {"etag": 'W/"weak"'}
TIMED = {"etag": None}
BARE = {"etag": None, "last_modified": None}
EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nEVIL!"

FAULTS: tuple[Fault, ...] = (
    survived(1, "cut", bend.body("close"), kind="body"),
    survived(1, "cut-thrice", bend.body("close"), kind="body", times=3, phases=FEW),
    fatal(1, "cut-always", bend.body("close"), kind="body"),
    survived(2, "reset", bend.body("reset"), kind="body", loss=MIB),
    survived(2, "reset-before-head", bend.instead_of_head("reset")),
    fatal(2, "reset-always", bend.body("reset"), kind="body", loss=MIB),
    survived(3, "range-ignored", bend.ignore_range, times=None, modes=RANGES, again=1),
    survived(3, "range-ignored-once", bend.ignore_range, modes=RANGES, again=1),
    fatal(4, "content-range-missing", bend.header("Content-Range"), *REFUSED, modes=RANGES),
    fatal(4, "content-range-star", bend.content_range("bytes {first}-{last}/*"), *REFUSED, modes=RANGES),
    fatal(4, "content-range-total", bend.content_range("bytes {first}-{last}/{more}"), *REFUSED, modes=RANGES),
    fatal(4, "content-range-beyond", bend.content_range("bytes {first}-{beyond}/{size}"), *REFUSED, modes=RANGES),
    fatal(4, "content-range-nonsense", bend.content_range("octets please"), *REFUSED, modes=RANGES),
    fatal(4, "content-range-after", bend.other_range(1), *REFUSED, modes=RANGES),
    fatal(4, "content-range-before", bend.other_range(-10), *REFUSED, modes=RANGES,
          phases=("mid", "between", "second")),
    either(4, "content-range-after-once", bend.other_range(1), *REFUSED, modes=RANGES),
    survived(5, "shorter", bend.resize(limit=3 * MIB), modes=RANGES, times=None, phases=LONG),
    either(5, "longer", bend.resize(more=999), modes=RANGES, times=None, phases=("probe", *LONG, "border")),
    either(5, "longer-than-said", bend.longer_than_said, modes=RANGES, times=None, phases=FEW),
    fatal(6, "multipart", bend.multipart(disguised=False), *REFUSED, modes=RANGES),
    fatal(6, "multipart-disguised", bend.multipart(disguised=True), *REFUSED, modes=RANGES),
    either(7, "length-too-small", bend.wrong_length(-7)),
    either(7, "length-too-large", bend.wrong_length(7)),
    either(7, "length-absent", bend.length(), Unavailable),
    either(7, "length-absent-chunked", bend.length(chunked=True), Unavailable),
    either(7, "length-twice-the-same", bend.length("{length}", "{length}"), Unavailable),
    fatal(7, "length-twice", bend.length("{length}", "{less}"), *REFUSED),
    fatal(7, "length-list", bend.length("{length}, {less}"), *REFUSED),
    fatal(7, "length-negative", bend.length("-{length}"), *REFUSED),
    fatal(7, "length-nonsense", bend.length("0x{length}"), *REFUSED),
    fatal(7, "length-and-chunked", bend.length("{less}", chunked=True), *REFUSED),
    either(8, "moved", bend.change(), SourceChanged, again=1, phases=DATA),
    either(8, "moved-unconditional", bend.change(), SourceChanged, again=1, phases=DATA,
           resource={"conditions": False}),
    either(8, "etag-moved", bend.change(bytes_too=False), SourceChanged, again=1, phases=DATA),
    either(8, "etag-flaps", bend.new_etag_every_time, *REFUSED, kind="server", again=1, phases=FLAPS),
    either(8, "etag-flaps-unconditional", bend.new_etag_every_time, *REFUSED, kind="server", again=1, phases=FLAPS,
           resource={"conditions": False}),
    survived(9, "weak-etag", bend.body("close"), kind="body", again=1, resource=WEAK),
    survived(9, "no-etag", bend.body("close"), kind="body", again=1, resource=TIMED),
    survived(9, "no-validator", bend.body("close"), kind="body", again=1, resource=BARE),
    either(9, "weak-moved", bend.change(), SourceChanged, again=1, phases=DATA, resource=WEAK),
    either(9, "no-etag-moved", bend.change(), SourceChanged, again=1, phases=DATA, resource=TIMED),
    either(9, "no-validator-moved", bend.change(keep_validators=True), SourceChanged, again=1, phases=DATA,
           resource=BARE),
    survived(10, "retry-after", bend.status(429, Retry_After="1"), gap=1.0),
    survived(10, "retry-after-date", bend.retry_date(1.0)),
    survived(10, "retry-after-past", bend.retry_date(-9999.0), phases=FEW),
    survived(10, "retry-after-nonsense", bend.status(503, Retry_After="soon, -1"), phases=FEW),
    survived(10, "retry-after-negative", bend.status(429, Retry_After="-5"), phases=FEW),
    survived(10, "retry-after-huge", bend.status(503, Retry_After="1000000000"), gap=1.0),
    fatal(10, "busy-always", bend.status(429, Retry_After="0")),
    survived(11, "500-twice", bend.status(500), times=2),
    survived(11, "502", bend.status(502)),
    survived(11, "504", bend.status(504), phases=FEW),
    survived(11, "408", bend.status(408), phases=FEW),
    survived(11, "slow-down", bend.s3_error(503, "SlowDown"), times=2),
    fatal(11, "500-always", bend.status(500)),
    survived(12, "expired", bend.expire, redirected=True, phases=DATA),
    fatal(12, "expired-always", bend.s3_error(403, "ExpiredToken"), SourceUnauthorized, redirected=True),
    fatal(12, "401-always", bend.status(401), SourceUnauthorized, asks=4),
    fatal(12, "403-always", bend.s3_error(403, "AccessDenied"), SourceUnauthorized, asks=4),
    fatal(13, "clock-skew", bend.s3_error(403, "RequestTimeTooSkewed"), *DENIED, asks=4, says="clock"),
    survived(14, "stall", bend.body("stall"), kind="body", loss=MIB),
    fatal(14, "stall-always", bend.body("stall"), kind="body", loss=MIB, phases=("first", "mid"), limits=LIMITED),
    survived(15, "drip", bend.body("drip"), kind="body", loss=MIB),
    fatal(15, "drip-always", bend.body("drip"), kind="body", loss=MIB, phases=("first", "mid"), limits=LIMITED),
    fatal(16, "connections-refused", bend.refuse_connections, kind="body", loss=MIB, phases=FEW),
    survived(17, "silence", bend.instead_of_head("stall")),
    survived(17, "dripping-head", bend.instead_of_head("drip")),
    fatal(17, "silence-always", bend.instead_of_head("stall"), phases=("first", "mid"), limits=LIMITED),
    fatal(17, "dripping-head-always", bend.instead_of_head("drip"), phases=("first", "mid"), limits=LIMITED),
    either(18, "bit-flip", bend.flip, SourceCorrupt, kind="body", pinned=True, again=1, phases=DATA),
    fatal(18, "bit-flip-always", bend.flip, SourceCorrupt, kind="body", pinned=True, again=1),
    fatal(19, "gzip", bend.compress, phases=("probe", *FEW), asks=4),
    fatal(19, "said-to-be-encoded", bend.mark_encoded, phases=("probe", *FEW), asks=4),
    fatal(20, "captive-portal", bend.status(200, bend.HTML, Content_Type="text/html"), *SUSPECT),
    either(20, "captive-portal-once", bend.status(200, bend.HTML, Content_Type="text/html"), again=1),
    fatal(21, "redirect-loop", bend.redirect("{path}")),
    fatal(21, "redirect-chain", bend.redirect("{path}?{number}")),
    fatal(21, "redirect-to-file", bend.redirect("file:///etc/hostname"), phases=("probe", *FEW), asks=4),
    fatal(21, "redirect-to-ftp", bend.redirect("ftp://127.0.0.1/m.gguf"), asks=4),
    fatal(21, "redirect-link-local", bend.redirect("http://169.254.169.254/latest/meta-data"), asks=4,
          phases=("probe", *FEW)),
    fatal(21, "redirect-nowhere", bend.redirect(""), asks=4),
    survived(22, "head-forbidden", bend.forbid_head, kind="server", phases=FEW),
    survived(22, "head-lies", bend.lie_to_head, kind="server", phases=FEW),
    fatal(23, "deleted", bend.s3_error(404, "NoSuchKey"), SourceNotFound, SourceChanged, asks=4,
          phases=("probe", *FEW)),
    fatal(23, "gone", bend.status(410), SourceNotFound, SourceChanged, asks=4),
    fatal(23, "archived", bend.s3_error(403, "InvalidObjectState"), BlobArchived, asks=4),
    fatal(24, "416-right-total", bend.unsatisfied, *REFUSED, modes=RANGES),
    either(24, "416-once", bend.unsatisfied, *REFUSED, modes=RANGES),
    survived(25, "http-1.0", bend.protocol("HTTP/1.0"), kind="server"),
    survived(25, "connection-close", bend.protocol(), kind="server"),
    survived(25, "continue-first", bend.protocol(preface=b"HTTP/1.1 100 Continue\r\n\r\n"), kind="server"),
    either(25, "garbage-after", bend.protocol(keep=True, trailer=b"\0garbage\r\n" * 9), kind="server"),
    either(25, "answer-after", bend.protocol(keep=True, trailer=EVIL), kind="server", again=1),
    survived(25, "garbage-before", bend.protocol(preface=b"what?\r\n\r\n")),
    fatal(25, "garbage-always", bend.protocol(preface=b"what?\r\n\r\n")),
    survived(26, "limit-429", bend.limit_connections(1), kind="server"),
    survived(26, "slower-together", bend.slower_together, kind="server", phases=FEW),
)  # fmt: skip
