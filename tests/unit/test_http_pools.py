"""Which way a request goes, what a proxy is told, and how a wait for an answer ends."""

from __future__ import annotations

import base64
import os
import threading
import traceback
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import urllib3

from modelstore.errors import SourceUnavailable
from modelstore.transfer.http import HttpClient, HttpFile
from modelstore.transfer.http.pool import Pools, _HttpPool
from tests.unit.wire import WAIT, RawServer, part

USER, PASSWORD = "us er", "S3CR@T:"
USERINFO = "us%20er:S3CR%40T:"
SECRETS = (PASSWORD, "S3CR", USERINFO, base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode())


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name == "REQUEST_METHOD":
            monkeypatch.delenv(name)


@pytest.fixture
def pools() -> Iterator[Pools]:
    made = Pools()
    yield made
    made.close()


def proxy_of(pool: urllib3.PoolManager) -> str | None:
    return pool.proxy.url if isinstance(pool, urllib3.ProxyManager) and pool.proxy else None


def test_without_a_proxy_all_goes_direct_and_over_the_same_pool(pools: Pools) -> None:
    assert proxy_of(pools.of("https://one/a")) is None
    assert pools.of("https://one/a") is pools.of("https://one/b?c") is pools.of("https://two/")
    assert pools.of("http://one/a") is pools.of("http://two/")


@pytest.mark.parametrize(
    ("variable", "url", "used"),
    [
        ("HTTPS_PROXY", "https://host/", True), ("https_proxy", "https://host/", True),
        ("HTTPS_PROXY", "http://host/", False), ("HTTP_PROXY", "http://host/", True),
        ("http_proxy", "http://host/", True), ("HTTP_PROXY", "https://host/", False),
        ("ALL_PROXY", "https://host/", True), ("all_proxy", "http://host/", True),
    ],
)  # fmt: skip
def test_a_proxy_from_the_environment(
    pools: Pools, monkeypatch: pytest.MonkeyPatch, variable: str, url: str, used: bool
) -> None:
    monkeypatch.setenv(variable, "http://proxy.example:3128")
    assert proxy_of(pools.of(url)) == ("http://proxy.example:3128" if used else None)


def test_a_proxy_without_a_scheme_is_one(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example:3128")
    assert proxy_of(pools.of("https://host/")) == "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("exceptions", "url", "direct"),
    [
        ("host", "https://host/", True), ("host", "https://host:8443/", True), ("host", "https://HOST/", True),
        (".example.com", "https://a.example.com/", True), ("example.com", "https://a.example.com/", True),
        ("example.com", "https://badexample.com/", False), ("a, host ,b", "https://host/", True),
        ("*", "https://host/", True), ("other", "https://host/", False), ("", "https://host/", False),
        ("host", "https://us:er@host/", True), ("127.0.0.1", "https://127.0.0.1:9/", True),
    ],
)  # fmt: skip
def test_no_proxy(pools: Pools, monkeypatch: pytest.MonkeyPatch, exceptions: str, url: str, direct: bool) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", exceptions)
    assert (proxy_of(pools.of(url)) is None) is direct


def test_the_environment_is_looked_at_once_for_an_origin(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = pools.of("https://host/a")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    assert pools.of("https://host/b") is direct
    assert proxy_of(pools.of("https://other/")) == "http://proxy.example:3128"
    assert proxy_of(pools.of("https://host:8443/")) == "http://proxy.example:3128"


def test_credentials_are_for_the_proxy_alone(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://{USERINFO}@proxy.example:3128")
    pool = pools.of("https://host/")
    assert isinstance(pool, urllib3.ProxyManager)
    assert proxy_of(pool) == "http://proxy.example:3128"
    token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    assert pool.proxy_headers["proxy-authorization"] == f"Basic {token}"
    assert "proxy-authorization" not in {name.lower() for name in pool.headers}


def test_a_proxy_is_asked_and_told_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    client = HttpClient("test")
    with RawServer(part(b"x", 0, 1)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{USERINFO}@127.0.0.1:{proxy.port}")
        client.probe(HttpFile("http://nowhere.invalid/m", "m", {"Authorization": "Bearer origin"}))
        client.close()
        (request,) = proxy.requests
    lines = request.decode().split("\r\n")
    assert lines[0] == "GET http://nowhere.invalid/m HTTP/1.1"
    token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    told = [line.partition(": ")[2] for line in lines if line.lower().startswith("proxy-auth")]
    assert told == [f"Basic {token}"]


def texts(error: BaseException) -> str:
    """All that a log could show of an error, its causes included."""
    return "".join(traceback.format_exception(error)) + repr(error)


MALFORMED = [
    f"http://{USERINFO}@127.0.0.1:port", f"http://{USERINFO}@127.0.0.1:99999", f"http://{USERINFO}@[::1",
    f"http://{USERINFO}@", f"socks9://{USERINFO}@127.0.0.1:1", f"://{USERINFO}@127.0.0.1:1",
    "http://S3CR%E2%82%AC@127.0.0.1:1",
]  # fmt: skip


def failure(monkeypatch: pytest.MonkeyPatch, variable: str, proxy: str) -> SourceUnavailable:
    monkeypatch.setenv(variable, proxy)
    client = HttpClient("test")
    with pytest.raises(SourceUnavailable) as caught:
        client.probe(HttpFile("http://nowhere.invalid/m", "m"))
    client.close()
    return caught.value


@pytest.mark.parametrize("proxy", [f"http://{USERINFO}@127.0.0.1:1", *MALFORMED])
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_no_error_quotes_a_proxys_credentials(monkeypatch: pytest.MonkeyPatch, proxy: str, variable: str) -> None:
    error = failure(monkeypatch, variable, proxy)
    assert not [secret for secret in SECRETS if secret in texts(error)]


@pytest.mark.parametrize(
    "proxy",
    [
        f"http://{USERINFO}@127.0.0.1:1",
        *MALFORMED[:2],
        *MALFORMED[2:],
    ],
)
def test_a_proxy_that_is_of_no_use_is_blamed(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    assert "HTTPS_PROXY" in str(failure(monkeypatch, "HTTP_PROXY", proxy))


# -- ending a wait -----------------------------------------------------------------------------------------------------


class Announced(dict[Any, Any]):
    """What is waited for; says when there is more of it."""

    def __init__(self) -> None:
        self._added = threading.Semaphore(0)

    def __setitem__(self, key: Any, item: Any) -> None:
        super().__setitem__(key, item)
        self._added.release()

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self._added.acquire(timeout=WAIT)


class Asking(threading.Thread):
    """Probes a file, and keeps what came of it."""

    def __init__(self, client: HttpClient, url: str) -> None:
        super().__init__(daemon=True)
        self._client = client
        self._file = HttpFile(url, "m")
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._client.probe(self._file)
        except BaseException as error:  # noqa: BLE001  looked at by the test
            self.error = error


def test_close_ends_the_wait_for_an_answer() -> None:
    client = HttpClient("test")
    client._pools._open_sockets = waiting = Announced()
    with RawServer(None, None, None) as server:
        threads = [Asking(client, f"{server.url}/m") for _ in range(3)]
        for thread in threads:
            thread.start()
        waiting.wait_for(3)  # they have sent, and are about to wait
        client.close()
        for thread in threads:
            thread.join(10)  # far less than the deadline of an answer
            assert not thread.is_alive()
            assert isinstance(thread.error, SourceUnavailable)
    assert not waiting


def test_close_ends_a_body_that_does_not_come() -> None:
    client = HttpClient("test")
    body = b"x" * 100
    whole = part(body, 0, 100)
    with RawServer(part(body, 0, 1), whole[:-50], whole[:-50]) as server:
        file = HttpFile(f"{server.url}/m", "m")
        client.probe(file)
        client._pools._open_sockets.clear()
        live = Announced()
        for pool in client._pools._pools.values():
            pool.clear()  # the next connection is to know of the new register
            pool.pool_classes_by_scheme = {"http": partial(_HttpPool, open_sockets=live)}
        client._pools._open_sockets = live
        pieces = client.read_range(file, 0, 100)
        ended = threading.Event()

        def read() -> None:
            try:
                for _ in pieces:
                    pass
            except SourceUnavailable:
                pass
            ended.set()

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        live.wait_for(2)  # for the header, and then for the body
        client.close()
        assert ended.wait(10)
        thread.join()


def test_a_closed_client_can_be_closed_again_and_waits_for_nobody() -> None:
    client = HttpClient("test")
    client.close()
    client.close()
