"""The pure helpers of the HTTP engine: what a server's headers and failures are taken to mean."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING

import pytest
import urllib3
from hypothesis import example, given, settings
from hypothesis import strategies as st
from urllib3.exceptions import MaxRetryError, NewConnectionError, ProtocolError, ReadTimeoutError

from modelstore.errors import SourceNotFound, SourceUnavailable
from modelstore.transfer import limits
from modelstore.transfer.http import HttpFile, answers
from modelstore.transfer.http.answers import check_answer, content_range, is_settled, redirect_target, retry_after
from modelstore.transfer.http.client import _reason, _translated

if TYPE_CHECKING:
    from collections.abc import Mapping

SECRET = "S3CRET"
FILE = HttpFile(f"https://host/m?sig={SECRET}", "https://host/m")


def answer(status: int = 206, headers: Mapping[str, str] = {}) -> urllib3.HTTPResponse:
    return urllib3.HTTPResponse(body=b"", status=status, headers=headers, preload_content=False)


# -- Retry-After -------------------------------------------------------------------------------------------------------


def http_date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("7", 7.0),
        ("120", 120.0),
        ("121", 120.0),
        ("9" * 18, 120.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 9999 07:28:00 GMT", 120.0),
        ("Wednesday, 21-Oct-15 07:28:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("1e9", None),
        ("inf", None),
        ("nan", None),
        ("9" * 5000, None),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
        ("Wed, 21 Oct 2015 07:28:00 +9999999999999999999", None),
        ("Wed, 21 Oct 99999999999 07:28:00 GMT", None),
    ],
)  # fmt: skip
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after(value) == seconds


def test_retry_after_as_a_date_is_the_time_until_then() -> None:
    assert retry_after(http_date(30)) == pytest.approx(30, abs=2)
    assert retry_after(http_date(-30)) == 0.0
    assert retry_after(http_date(3600)) == 120.0


@settings(deadline=None)
@given(
    st.text()
    | st.from_regex(r"\w{3}, \d{1,3} (Jan|Oct) \d{1,6} \d\d:\d\d:\d\d( [+-]\d{1,25}| GMT| \w*)?", fullmatch=True)
)
@example("Mon, 01 Jan 0001 00:00:00 -0000")
@example("Mon, 01 Jan 0001 00:00:00 +2300")
def test_any_retry_after_is_bounded(value: str) -> None:
    seconds = retry_after(value)
    assert seconds is None or 0.0 <= seconds <= 120.0


DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.mark.parametrize(
    ("modified", "date", "settled"),
    [
        ("Wed, 21 Oct 2015 07:27:00 GMT", DATE, True),
        ("Wed, 21 Oct 2015 07:27:01 GMT", DATE, False),
        ("Wed, 21 Oct 2015 07:29:00 GMT", DATE, False),
        ("Wed, 21 Oct 2015 07:27:00 -0000", DATE, False),  # without a zone: cannot be compared
        ("Wed, 21 Oct 2015 07:27:00 +9999999999999999999", DATE, False),
        ("yesterday", DATE, False),
        (None, DATE, False),
        ("Wed, 21 Oct 2015 07:27:00 GMT", None, False),
        (None, None, False),
    ],
)
def test_a_time_is_a_validator_a_minute_later(modified: str | None, date: str | None, settled: bool) -> None:
    assert is_settled(modified, date) is settled


def test_a_busy_server_is_asked_again_when_it_says() -> None:
    with pytest.raises(SourceUnavailable) as caught:
        check_answer(FILE, answer(503, {"Retry-After": "7"}))
    assert (caught.value.retryable, caught.value.retry_after) == (True, 7.0)


@pytest.mark.parametrize("status", [400, 402, 405, 418, 451, 300, 304])
def test_an_answer_that_will_not_change_is_not_asked_for_again(status: int) -> None:
    with pytest.raises(SourceUnavailable) as caught:
        check_answer(FILE, answer(status))
    assert caught.value.retryable is False


# -- Content-Range -----------------------------------------------------------------------------------------------------


def test_content_range() -> None:
    assert content_range(FILE, answer(headers={"Content-Range": "bytes 0-0/1"})) == (0, 0, 1)
    assert content_range(FILE, answer(headers={"content-range": "bytes 5-9/1000000000000"})) == (5, 9, 10**12)


@pytest.mark.parametrize(
    "value",
    [
        None, "", "bytes", "bytes 0-4", "bytes 0-4/", "bytes 0-4/*", "bytes */5", "bytes */*", "bytes -4/5",
        "bytes 0-/5", "0-4/5", "items 0-4/5", "bytes=0-4/5", "bytes 0-4/5, 6-7/8", "bytes 0-4/5\n", " bytes 0-4/5",
        "bytes  0-4/5", "bytes 4-0/5", "bytes 0-5/5", "bytes 5-5/5", "bytes 0-4/4", "bytes 0x0-0x4/5", "bytes +0-4/5",
        "bytes 0-4/-5", "bytes 0.0-4/5", f"bytes 0-4/{'9' * 5000}",
    ],
)  # fmt: skip
def test_a_range_that_does_not_say_which_is_refused_for_good(value: str | None) -> None:
    headers = {} if value is None else {"Content-Range": value}
    with pytest.raises(SourceUnavailable) as caught:
        content_range(FILE, answer(headers=headers))
    assert caught.value.retryable is False
    assert SECRET not in str(caught.value)


# -- redirects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "location", "target"),
    [
        ("https://host/a/b", "c", "https://host/a/c"),
        ("https://host/a/b", "/c?d=e", "https://host/c?d=e"),
        ("https://host/a", "//other/c", "https://other/c"),
        ("https://host/a", "https://other:8443/c", "https://other:8443/c"),
        ("http://host/a", "https://host/a", "https://host/a"),
        ("http://host/a", "http://other/a", "http://other/a"),
        ("https://host/a?b", "?c", "https://host/a?c"),
    ],
)
def test_where_a_redirect_leads(url: str, location: str, target: str) -> None:
    assert redirect_target(FILE, url, location) == target


@pytest.mark.parametrize(
    "location",
    [
        "", "http://host/m", "HTTP://host/m", "ftp://host/m", "file:///etc/passwd", "gopher://host/", "data:,x",
        "javascript:x",
        "https://host\\@other/m", "\\\\other\\m", "https://[::1/m", "https://host:port/m",
        "https://host:99999/m", "https://[v1.x/", "//[/m", "https://exa\u2100mple.com/m",
    ],
)  # fmt: skip
def test_a_redirect_to_somewhere_else_is_refused_for_good(location: str) -> None:
    with pytest.raises(SourceUnavailable) as caught:
        redirect_target(FILE, FILE.url, location)
    assert caught.value.retryable is False
    assert SECRET not in str(caught.value)


@settings(deadline=None)
@given(
    st.text(max_size=20)
    | st.lists(st.sampled_from(["https:", "http:", "//", "[", "]", "@", ":", "\\", "a", "/", "?", "#", "99999"])).map(
        "".join
    )
)
def test_any_location_is_a_web_address_or_refused(location: str) -> None:
    try:
        target = redirect_target(FILE, FILE.url, location)
    except SourceUnavailable:
        return
    assert target.startswith("https://")


# -- what failed -------------------------------------------------------------------------------------------------------


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def verification_error() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed")
    error.verify_message = "self-signed certificate"
    return error


POOL = urllib3.HTTPConnectionPool("host")
REASONS = {
    "refused": (caused(OSError("x"), ConnectionRefusedError(111, "Connection refused")), "connection refused"),
    "wrapped": (
        MaxRetryError(POOL, "/m", caused(NewConnectionError(None, "x"), OSError(113, "No route to host"))),  # type: ignore[arg-type]
        "no route to host",
    ),
    "unknown host": (
        caused(OSError("x"), socket.gaierror(-2, "Name or service not known")),
        "its host name is not known",
    ),
    "certificate": (caused(urllib3.exceptions.SSLError("x"), verification_error()), "self-signed certificate"),
    "stall": (ReadTimeoutError(POOL, "/m", "Read timed out."), f"no byte came for {limits.STALL_SECONDS:g} seconds"),
    "connect": (
        urllib3.exceptions.ConnectTimeoutError(None, "x"),
        f"no answer within {limits.CONNECT_SECONDS:g} seconds",
    ),
    "broken": (ProtocolError("Connection broken: <object at 0x7f00>"), "the connection broke off"),
    "anything": (ValueError("at 0x7f00"), "the connection broke off"),
}


@pytest.mark.parametrize(("error", "reason"), REASONS.values(), ids=REASONS)
def test_the_reason_in_a_few_words(error: BaseException, reason: str) -> None:
    assert _reason(error) == reason


def test_a_cause_that_goes_round_in_a_circle_ends() -> None:
    one, other = OSError("one"), OSError("other")
    one.__cause__, other.__cause__ = other, one
    assert _reason(one) == "the connection broke off"


def test_what_the_network_says_is_translated_once() -> None:
    with pytest.raises(SourceUnavailable, match="connection refused") as caught, _translated(FILE):
        raise ConnectionRefusedError(111, "Connection refused")
    assert caught.value.retryable
    assert SECRET not in str(caught.value)
    with pytest.raises(SourceUnavailable, match="certificate") as caught, _translated(FILE):
        raise caused(urllib3.exceptions.SSLError("x"), verification_error())
    assert not caught.value.retryable
    original = SourceNotFound("gone")  # an OSError too
    with pytest.raises(SourceNotFound) as kept, _translated(FILE):
        raise original
    assert kept.value is original


def test_the_time_is_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers.time, "time", lambda: datetime(2015, 10, 21, 7, 27, 50, tzinfo=UTC).timestamp())
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 10.0
