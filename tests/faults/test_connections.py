"""Fault 16 and its like: nobody there, nobody answering, the wrong certificate, too many connections."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelstore import Store
from modelstore.digest import CHUNK_SIZE
from modelstore.errors import SourceUnavailable
from modelstore.source_url import SourceURL
from modelstore.sources.web import WebSource
from modelstore.transfer import limits
from tests.faults import bend
from tests.faults.bend import Blow
from tests.faults.catalogue import MIB
from tests.faults.harness import BODY, check_published, longest
from tests.faults.server import FaultServer, tls_context
from tests.faults.wire import Answer, Request
from tests.support import sha256_of, visible, wait_until
from tests.support.httpserver import PatternBody

SMALL = PatternBody(100_000, seed=7)
TLS = Path(__file__).parent / "tls"
BAD_CERTIFICATES = ("expired", "other-host", "untrusted")


@pytest.fixture
def fetch(root: Path) -> Callable[..., str]:
    """Fetch into `root`; the SHA-256 of what came."""

    def run(url: str, connections: int | None = 3) -> str:
        model = Store([root]).fetch(url, connections=connections)
        check_published(root)
        return sha256_of(model.path / url.rpartition("/")[2])

    return run


@contextlib.contextmanager
def unavailable(root: Path) -> Iterator[pytest.ExceptionInfo[SourceUnavailable]]:
    """It fails as it should, in bounded time, and nothing is visible of it."""
    begun = time.monotonic()
    with pytest.raises(SourceUnavailable) as caught:
        yield caught
    assert time.monotonic() - begun < longest()
    assert visible(root) == {}


def test_nobody_listens(root: Path, fetch: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with unavailable(root):
        fetch(f"http://127.0.0.1:{port}/m.gguf")


def test_packets_vanish(root: Path, fetch: Callable[..., str], short_limits: pytest.MonkeyPatch) -> None:
    """A full backlog drops the SYN, as a black hole does."""
    short_limits.setattr(limits, "CONNECT_SECONDS", 0.3)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        with unavailable(root):
            fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/m.gguf")


def test_the_name_is_unknown(root: Path, fetch: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_name(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    with unavailable(root):
        fetch("http://origin.invalid/m.gguf")


@pytest.mark.parametrize("strike", ["reset", "stall", "close"])
def test_a_connection_is_dropped_at_accept(server: FaultServer, fetch: Callable[..., str], strike: str) -> None:
    """Once; the next one is served."""
    resource = server.add("/m.gguf", BODY)
    server.at_accept = lambda number: strike if number == 2 else ""  # type: ignore[assignment,return-value]
    assert fetch(resource.url) == BODY.sha256
    assert server.connections >= 3
    assert server.bytes_sent() <= BODY.size + 1000


# -- TLS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD_CERTIFICATES)
def test_a_bad_certificate_is_not_tried_again(
    tls_server: FaultServer, root: Path, fetch: Callable[..., str], name: str
) -> None:
    resource = tls_server.add("/m.gguf", SMALL)
    tls_server.tls = tls_context(TLS / f"{name}.pem")
    with unavailable(root) as caught:
        fetch(resource.url)
    assert caught.value.retryable is False
    assert (tls_server.connections, tls_server.log) == (1, [])
    tls_server.tls = tls_context()
    assert fetch(resource.url) == SMALL.sha256


@pytest.mark.parametrize("name", BAD_CERTIFICATES)
def test_a_certificate_that_turns_bad(
    tls_server: FaultServer, root: Path, fetch: Callable[..., str], name: str
) -> None:
    """In the middle of the second chunk; whoever connects after that is told no once."""

    def swap(request: Request, answer: Answer) -> None:
        if not request.is_probe and answer.start <= CHUNK_SIZE + 5_000_000 < answer.stop:
            tls_server.tls = tls_context(TLS / f"{name}.pem")
            answer.strike, answer.at = "close", CHUNK_SIZE + 5_000_000

    resource = tls_server.add("/m.gguf", BODY, script=swap)
    with unavailable(root):
        fetch(resource.url)
    wait_until(lambda: tls_server.handshakes_failed > 0)  # the server hears of it after the client has gone
    assert tls_server.handshakes_failed <= 3
    tls_server.tls, resource.script = tls_context(), None
    assert fetch(resource.url) == BODY.sha256


def test_tls_is_expected_and_plain_http_answers(server: FaultServer, root: Path, fetch: Callable[..., str]) -> None:
    server.add("/m.gguf", SMALL)
    with unavailable(root):
        fetch(server.url.replace("http:", "https:") + "/m.gguf")
    assert server.requests("/m.gguf") == []


def test_a_handshake_that_never_ends(
    tls_server: FaultServer, root: Path, fetch: Callable[..., str], short_limits: pytest.MonkeyPatch
) -> None:
    resource = tls_server.add("/m.gguf", SMALL)
    tls_server.at_accept = lambda number: "stall"
    with unavailable(root), short_limits.context() as shorter:
        shorter.setattr(limits, "CONNECT_SECONDS", 0.3)
        fetch(resource.url)
    tls_server.at_accept = None
    assert fetch(resource.url) == SMALL.sha256


def test_nothing_falls_back_to_plain(
    tls_server: FaultServer, server: FaultServer, root: Path, fetch: Callable[..., str]
) -> None:
    """A redirect from https to http is refused before anything is asked there."""
    server.add("/m.gguf", SMALL)
    origin = tls_server.add(
        "/m.gguf", script=lambda request, answer: answer.replace(302, Location=f"{server.url}/m.gguf")
    )
    with unavailable(root):
        fetch(origin.url)
    assert server.log == []


def test_an_old_protocol_is_refused(tls_server: FaultServer, root: Path, fetch: Callable[..., str]) -> None:
    context = tls_context()
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    tls_server.tls = context
    resource = tls_server.add("/m.gguf", SMALL)
    with unavailable(root):
        fetch(resource.url)
    assert tls_server.log == []


# -- too many connections (fault 26) ----------------------------------------------------------------------------------


@pytest.mark.parametrize("connections", [None, 8])
@pytest.mark.parametrize("most", [1, 2])
def test_a_server_that_allows_few_connections(
    server: FaultServer, fetch: Callable[..., str], most: int, connections: int | None
) -> None:
    """It is asked by fewer at once, instead of again and again; and what it gave is not asked for again."""
    body = PatternBody(6 * CHUNK_SIZE + 1, seed=8)
    resource = server.add("/m.gguf", body)
    how = bend.limit_connections(most)
    resource.script = lambda request, answer: how(Blow(server, resource, request, answer, 0))
    assert fetch(resource.url, connections) == body.sha256
    refused = [request for request in server.log if request.status == 429]
    assert 1 <= len(refused) <= 30
    assert server.bytes_sent() <= body.size + MIB


def test_retry_after_holds_for_all(server: FaultServer, fetch: Callable[..., str]) -> None:
    """While the server has asked to be left alone, no connection asks it for what it refused."""
    waited: list[float] = []

    def refuse_once(request: Request, answer: Answer) -> None:
        if answer.start == CHUNK_SIZE and not waited:
            waited.append(time.monotonic())
            answer.replace(503, Retry_After="1")
        elif waited and request.start == CHUNK_SIZE:
            waited.append(time.monotonic())

    resource = server.add("/m.gguf", BODY, script=refuse_once)
    assert fetch(resource.url) == BODY.sha256
    assert waited[1] - waited[0] >= 0.9


def test_a_refusal_without_a_body_leaves_the_connection_good(server: FaultServer, root: Path) -> None:
    """Whoever still holds the error, as another thread does, the next request on that connection is answered."""
    resource = server.add("/m.gguf", SMALL)
    resource.script = lambda request, answer: answer.replace(503) if request.nth < 4 else None
    errors: list[str] = []
    held: list[BaseException] = []
    with contextlib.closing(WebSource(Store([root]).config)) as source:
        for _ in range(3):
            try:
                source.resolve(SourceURL.parse(resource.url))
            except SourceUnavailable as error:
                held.append(error)
                errors.append(str(error))
        (file,) = source.resolve(SourceURL.parse(resource.url)).files
    assert file.size == SMALL.size
    assert all("503" in error for error in errors)
    assert len(server.log) == 4
