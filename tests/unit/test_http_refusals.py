"""What an answer must not be: another length, another place, a web page, and what a refusal of S3 means."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import urllib3
from urllib3 import HTTPHeaderDict

from modelstore.errors import BlobArchived, ModelStoreError, SourceNotFound, SourceUnauthorized, SourceUnavailable
from modelstore.transfer.http import HttpClient, HttpFile
from modelstore.transfer.http.answers import check_answer, content_range, redirect_target
from tests.unit.wire import RawServer, answer, chunked, part

FILE = HttpFile("https://host/m", "https://host/m")
BODY = b"model" * 100


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpClient]:
    monkeypatch.setenv("NO_PROXY", "*")
    made = HttpClient("test")
    yield made
    made.close()


def probe(client: HttpClient, *answers: bytes, path: str = "/m") -> HttpFile:
    with RawServer(*answers) as server:
        file = HttpFile(f"{server.url}{path}", f"{server.url}{path}")
        try:
            client.probe(file)
        finally:
            client.close()
    return file


# -- S3 ----------------------------------------------------------------------------------------------------------------


def refusal(code: str) -> bytes:
    document = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>SECRET text</Message></Error>"
    return document.encode()


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        ("403 Forbidden", "RequestTimeTooSkewed", SourceUnauthorized, "clock"),
        ("403 Forbidden", "ExpiredToken", SourceUnauthorized, "renew"),
        ("400 Bad Request", "ExpiredToken", SourceUnauthorized, "renew"),
        ("403 Forbidden", "InvalidObjectState", BlobArchived, "archive"),
        ("403 Forbidden", "AccessDenied", SourceUnauthorized, "credentials"),
        ("401 Unauthorized", "", SourceUnauthorized, "credentials"),
        ("404 Not Found", "NoSuchKey", SourceNotFound, "NoSuchKey"),
        ("400 Bad Request", "RequestTimeout", SourceUnavailable, "RequestTimeout"),
        ("503 Slow Down", "SlowDown", SourceUnavailable, "SlowDown"),
    ],
)
@pytest.mark.parametrize("framed", ["length", "chunked"])
def test_a_refusal_of_s3_says_what_to_do(
    client: HttpClient, status: str, code: str, kind: type[ModelStoreError], words: str, framed: str
) -> None:
    """S3 sends its error documents chunked (so do its imitators), some of them with a length."""
    kind_header = "Content-Type: application/xml"
    said = answer(status, refusal(code), kind_header)
    if framed == "chunked":
        said = answer(status, b"", kind_header, "Transfer-Encoding: chunked", length=False) + chunked(refusal(code))
    with pytest.raises(kind) as caught:
        probe(client, said)
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert (code or "401") in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert caught.value.retryable is (code in ("RequestTimeout", "SlowDown"))


@pytest.mark.parametrize(
    "document",
    [b"", b"<Code>", b"<Code></Code>", b"<Code>Expired Token</Code>", b"<Code>" + b"x" * 65 + b"</Code>",
     b"<Code>\xc3\xa9</Code>", b"\xff" * 4096, b"<!--" + b"x" * 5000 + b"--><Code>ExpiredToken</Code>"],
    ids=lambda document: repr(document)[:25],
)  # fmt: skip
def test_what_is_no_code_is_not_repeated(client: HttpClient, document: bytes) -> None:
    with pytest.raises(SourceUnavailable, match=r"answered HTTP 400\Z") as caught:
        probe(client, answer("400 Bad Request", document, "Content-Type: application/xml"))
    assert not caught.value.retryable


def test_a_refusal_that_breaks_off_is_a_refusal_still(client: HttpClient) -> None:
    said = answer("403 Forbidden", b"<Err", "Content-Type: application/xml", "Content-Length: 100", length=False)
    with pytest.raises(ModelStoreError):
        probe(client, said + RawServer.CLOSE)


# -- framing -----------------------------------------------------------------------------------------------------------


def response(*headers: tuple[str, str]) -> urllib3.HTTPResponse:
    return urllib3.HTTPResponse(body=b"", status=206, headers=HTTPHeaderDict(headers), preload_content=False)


@pytest.mark.parametrize(
    "headers",
    [
        [("Content-Length", "5, 5")], [("Content-Length", "+5")],
        [("Content-Length", "-5")], [("Content-Length", "5.0")], [("Content-Length", "0x5")], [("Content-Length", "")],
        [("Content-Length", "9" * 19)], [("Content-Length", "5"), ("Transfer-Encoding", "chunked")],
        [("Content-Length", "5"), ("Transfer-Encoding", "identity")], [("Content-Encoding", "gzip")],
        [("Content-Encoding", "identity, gzip")], [("Content-Encoding", "br")],
    ],
)  # fmt: skip
def test_an_answer_with_two_ends_or_none_is_refused_for_good(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(SourceUnavailable) as caught:
        check_answer(FILE, response(*headers))
    assert not caught.value.retryable


@pytest.mark.parametrize("second", ["Content-Length: 7", "content-length: 6"])
def test_two_lengths_on_the_wire_are_refused_for_good(client: HttpClient, second: str) -> None:
    with pytest.raises(SourceUnavailable, match="length") as caught:
        probe(client, answer("206 Partial Content", b"x", "Content-Range: bytes 0-0/9", second))
    assert not caught.value.retryable


@pytest.mark.parametrize(
    "headers",
    [
        [], [("Content-Length", "5")], [("Content-Length", "5"), ("Content-Length", "5")],
        [("Transfer-Encoding", "chunked")], [("Content-Encoding", "Identity")],
    ],
)  # fmt: skip
def test_an_answer_with_one_end_is_not(headers: list[tuple[str, str]]) -> None:
    check_answer(FILE, response(*headers))


@pytest.mark.parametrize("length", ["0", "4", "6", "100"])
def test_a_range_and_a_length_that_disagree(length: str) -> None:
    good = ("Content-Range", "bytes 10-14/100")
    assert content_range(FILE, response(good)) == (10, 14, 100)
    assert content_range(FILE, response(good, ("Content-Length", "5"))) == (10, 14, 100)
    with pytest.raises(SourceUnavailable) as caught:
        content_range(FILE, response(good, ("Content-Length", length)))
    assert not caught.value.retryable


# -- redirects to this machine -----------------------------------------------------------------------------------------

INSIDE = [
    "127.0.0.1", "127.255.255.254", "localhost", "LOCALHOST", "[::1]", "[0:0:0:0:0:0:0:1]", "169.254.169.254",
    "[fe80::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]", "0.0.0.0", "[::]", "[::ffff:0.0.0.0]",
]  # fmt: skip
# Forms that inet_aton(3), and so getaddrinfo(3), takes for the same addresses.
ODD = [
    "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001", "2852039166",
    "0xa9fea9fe", "0", "0.0", "localhost.", "a.localhost",
]  # fmt: skip


ADDRESSES = {"host": "192.0.2.1", "localhost": "127.0.0.1", "localhost.": "127.0.0.1", "a.localhost": "::1"}
ADDRESSES |= {"example.com": "192.0.2.2", "inside.example.com": "127.0.0.1", "metadata.example.com": "169.254.169.254"}


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Knows some names, and asks nobody."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: Any, *args: Any, **options: Any) -> list[Any]:
        known = ADDRESSES.get(host, host)
        return real(known, port, *args, **{**options, "flags": socket.AI_NUMERICHOST})

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.usefixtures("resolver")
@pytest.mark.parametrize("host", INSIDE)
@pytest.mark.parametrize("prefix", ["https://", "https://user@", "//"])
def test_a_redirect_to_this_machine_is_refused(host: str, prefix: str) -> None:
    with pytest.raises(SourceUnavailable) as caught:
        redirect_target(FILE, FILE.url, f"{prefix}{host}:8443/latest/meta-data")
    assert not caught.value.retryable


@pytest.mark.usefixtures("resolver")
@pytest.mark.parametrize("host", [*ODD, "inside.example.com", "metadata.example.com"])
def test_a_redirect_to_this_machine_by_another_name_is_refused(host: str) -> None:
    with pytest.raises(SourceUnavailable):
        redirect_target(FILE, FILE.url, f"https://{host}/latest/meta-data")


@pytest.mark.usefixtures("resolver")
def test_a_zone_does_not_hide_a_link_local_address() -> None:
    with pytest.raises(SourceUnavailable):
        redirect_target(FILE, FILE.url, "https://[fe80::1%25lo]/m")


@pytest.mark.usefixtures("resolver")
def test_a_redirect_to_this_machine_is_refused_behind_a_proxy() -> None:
    """Where only the proxy knows names, and ``NO_PROXY`` names this machine."""
    with pytest.raises(SourceUnavailable):
        redirect_target(FILE, "https://only.the.proxy.knows/m", "https://127.0.0.1:8443/secrets")


@pytest.mark.usefixtures("resolver")
@pytest.mark.parametrize("host", ["10.0.0.1", "192.168.1.1", "[fd00::1]", "example.com", "unknown.example.com"])
def test_a_redirect_to_a_neighbour_is_not(host: str) -> None:
    """Mirrors and object stores live on private networks."""
    assert redirect_target(FILE, FILE.url, f"https://{host}/m") == f"https://{host}/m"


@pytest.mark.usefixtures("resolver")
@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost:2", "[::1]:3"])
def test_this_machine_may_name_itself(host: str) -> None:
    assert redirect_target(FILE, "http://127.0.0.1:9/m", f"http://{host}/m") == f"http://{host}/m"


# -- the probe ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text/html", "Text/HTML; charset=utf-8", " text/html ;x"])
def test_a_web_page_is_no_model(client: HttpClient, kind: str) -> None:
    with pytest.raises(SourceUnavailable, match=r"web page.*login") as caught:
        probe(client, answer("200 OK", b"<html>", f"Content-Type: {kind}"))
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("path", "kind"), [("/m.html", "text/html"), ("/m.htm?x=1", "text/html"), ("/m", "text/plain"), ("/m", "")]
)
def test_a_page_that_was_asked_for_is_one(client: HttpClient, path: str, kind: str) -> None:
    assert probe(client, answer("200 OK", BODY, f"Content-Type: {kind}"), path=path).size == len(BODY)


def test_a_page_in_ranges_is_a_file(client: HttpClient) -> None:
    assert probe(client, part(BODY, 0, 1, "Content-Type: text/html")).size == len(BODY)


def test_an_empty_file(client: HttpClient) -> None:
    file = probe(client, answer("416 Range Not Satisfiable", b"", "Content-Range: bytes */0", 'ETag: "e"'))
    assert (file.size, file.etag) == (0, '"e"')


def test_a_file_that_does_not_say_how_long_it_is(client: HttpClient) -> None:
    said = answer("200 OK", b"", "Transfer-Encoding: chunked", length=False) + chunked(BODY)
    with pytest.raises(SourceUnavailable, match="how long"):
        probe(client, said)


def test_the_probe_reads_one_byte_and_no_more(client: HttpClient) -> None:
    """A server that answers ``bytes=0-0`` with more than was asked for must not fill the memory."""
    with RawServer(part(BODY * 1000, 0, 5_000 * 100)) as server:
        file = HttpFile(f"{server.url}/m", "m")
        read = 0
        real = client._body

        def body(file: HttpFile, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
            nonlocal read
            for piece in real(file, response):
                read += len(piece)
                yield piece

        client._body = body  # type: ignore[method-assign]
        with suppress(SourceUnavailable):  # refusing is as good
            client.probe(file)
        client.close()
    assert read <= 1
