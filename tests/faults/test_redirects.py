"""Fault 21, and what a redirect must not take along: credentials stay with the host that they are for."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelstore import Store
from modelstore.digest import CHUNK_SIZE
from modelstore.errors import SourceUnauthorized, SourceUnavailable
from modelstore.transfer import limits
from tests.faults.harness import BODY
from tests.faults.server import FaultServer
from tests.faults.wire import Answer, Request
from tests.support import sha256_of, visible
from tests.support.httpserver import PatternBody

SMALL = PatternBody(100_000, seed=7)
USERINFO = "reader:c4nary"
BASIC = "Basic " + base64.b64encode(USERINFO.encode()).decode()
Script = Callable[[Request, Answer], None]


@pytest.fixture
def elsewhere() -> Iterator[FaultServer]:
    """Another host."""
    with FaultServer("127.0.0.2") as other:
        yield other


def fetch(root: Path, url: str) -> str:
    model = Store([root]).fetch(url, connections=3)
    return sha256_of(model.path / "m.gguf")


def with_userinfo(url: str) -> str:
    return url.replace("://", f"://{USERINFO}@")


def to(location: str, code: int = 302) -> Script:
    return lambda request, answer: answer.replace(code, b"elsewhere\n", Location=location)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(server: FaultServer, elsewhere: FaultServer, root: Path, code: int) -> None:
    target = elsewhere.add("/target", SMALL)
    origin = server.add("/m.gguf", script=to(target.url, code))
    assert fetch(root, origin.url) == SMALL.sha256


@pytest.mark.parametrize(("hops", "good"), [(10, True), (11, False)])
def test_ten_redirects_and_no_more(server: FaultServer, root: Path, hops: int, good: bool) -> None:
    for number in range(1, hops):
        server.add(f"/{number}", script=to(f"/{number + 1}"))
    server.add(f"/{hops}", SMALL)
    origin = server.add("/m.gguf", script=to("/1"))
    if good:
        assert fetch(root, origin.url) == SMALL.sha256
    else:
        with pytest.raises(SourceUnavailable):
            fetch(root, origin.url)
        assert server.requests(f"/{hops}") == []


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/hostname",
        "ftp://127.0.0.1/m.gguf",
        "data:text/plain,hello",
        "//",
        "http://",
        "http:///m.gguf",
        "http://127.0.0.1:99999/m.gguf",
        "http://127.0.0.1\\@169.254.169.254/",
        "http://[::1",
        "http://169.254.169.254/latest/meta-data",
        "http://169.254.169.254:80/latest/meta-data",
        "http://2852039166/latest/meta-data",
        "http://0xa9fea9fe/latest/meta-data",
        "http://0251.0376.0251.0376/latest/meta-data",
        "http://[::ffff:169.254.169.254]/latest/meta-data",
        "http://[fe80::1]/m.gguf",
        "http://[fd00:ec2::254]/latest/meta-data",
    ],
)
def test_a_redirect_to_what_is_no_origin(server: FaultServer, root: Path, location: str) -> None:
    """Other schemes, malformed addresses, and the link-local addresses at which a cloud gives out credentials.

    The fixture `only_loopback` sees to it that nothing there is even connected to.
    """
    origin = server.add("/m.gguf", script=to(location))
    with pytest.raises(SourceUnavailable):
        fetch(root, origin.url)
    assert visible(root) == {}
    assert len(server.log) <= limits.MAX_REDIRECTS + 1


# -- credentials ----------------------------------------------------------------------------------------------------


def test_credentials_stay_with_their_host(server: FaultServer, elsewhere: FaultServer, root: Path) -> None:
    """All the way: to another host, back to the first, and while ranges are read."""
    server.add("/back", BODY)
    elsewhere.add("/hop", script=to(f"{server.url}/back"))
    origin = server.add("/m.gguf", script=to(f"{elsewhere.url}/hop"))
    assert fetch(root, with_userinfo(origin.url)) == BODY.sha256
    assert {request.headers.get("authorization") for request in server.requests("/m.gguf")} == {BASIC}
    assert elsewhere.log
    assert not _carried(elsewhere)


def test_credentials_stay_when_it_redirects_midway(server: FaultServer, elsewhere: FaultServer, root: Path) -> None:
    target = elsewhere.add("/target", BODY)

    def move(request: Request, answer: Answer) -> None:
        if answer.start >= CHUNK_SIZE:
            answer.replace(307, Location=target.url)

    origin = server.add("/m.gguf", BODY, script=move)
    assert fetch(root, with_userinfo(origin.url)) == BODY.sha256
    assert elsewhere.log
    assert not _carried(elsewhere)


def test_another_port_is_another_host(server: FaultServer, root: Path) -> None:
    with FaultServer() as neighbour:
        target = neighbour.add("/target", SMALL)
        origin = server.add("/m.gguf", script=to(target.url))
        assert fetch(root, with_userinfo(origin.url)) == SMALL.sha256
        assert not _carried(neighbour)


def test_a_challenge_that_names_another_host(server: FaultServer, elsewhere: FaultServer, root: Path) -> None:
    realm = f'Bearer realm="{elsewhere.url}/token",service="x"'
    origin = server.add("/m.gguf", script=lambda _, answer: answer.replace(401, WWW_Authenticate=realm))
    with pytest.raises(SourceUnauthorized) as caught:
        fetch(root, with_userinfo(origin.url))
    assert elsewhere.log == []
    assert "c4nary" not in f"{caught.value!r} {caught.value}"


def test_an_error_does_not_quote_where_it_was_sent(server: FaultServer, elsewhere: FaultServer, root: Path) -> None:
    """A signed address is a credential."""
    gone = f"{elsewhere.url}/gone?X-Amz-Signature=c4nary&token=c4nary"
    origin = server.add("/m.gguf", script=to(gone))
    elsewhere.add("/gone", script=lambda _, answer: answer.replace(403))
    with pytest.raises(SourceUnauthorized) as caught:
        fetch(root, origin.url)
    texts = []
    error: BaseException | None = caught.value
    while error is not None:
        texts.append(f"{error!r} {error}")
        error = error.__cause__ or error.__context__
    assert "c4nary" not in " ".join(texts)


def _carried(other: FaultServer) -> list[Request]:
    """Requests in which anything of the secret came along."""
    secrets = (BASIC.removeprefix("Basic "), "c4nary")
    return [
        request
        for request in other.log
        if any(secret in f"{request.path}?{request.query} {request.headers}" for secret in secrets)
    ]
