"""Short limits, a store that is cleared away, and no connection to anywhere but this machine."""

from __future__ import annotations

import gc
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelstore import fetching
from modelstore.transfer import limits
from tests.faults.server import FaultServer, tls_context
from tests.support.httpserver import TLS_CERT

LIMITS = {
    "CONNECT_SECONDS": 1.0,
    "HEADER_SECONDS": 1.0,
    "STALL_SECONDS": 1.0,
    "SLOW_SECONDS": 1.5,
    "SLOW_BYTES": 61_440,
    "MAX_RETRY_AFTER": 1.0,
    "FIRST_DELAY": 0.01,
    "LONGEST_DELAY": 0.05,
}


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What takes a minute in the field takes a second here."""
    for name, value in LIMITS.items():
        monkeypatch.setattr(limits, name, value)
    monkeypatch.setattr(fetching, "RESOLVE_DELAYS", (0.01, 0.02, 0.05))
    return monkeypatch


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing may be connected to but this machine, whatever a server says."""
    elsewhere: list[Any] = []
    connect = socket.socket.connect

    def checked(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and not str(address[0]).startswith(("127.", "::1", "localhost")):
            elsewhere.append(address)
            raise OSError(f"the tests do not connect to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", checked)
    yield
    assert elsewhere == []


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A store's directory; gone after the test, since hundreds of cells would fill the disk."""
    yield tmp_path / "store"
    gc.collect()  # a socket that was left open is shown here, and not in some other test
    shutil.rmtree(tmp_path / "store", ignore_errors=True)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as origin:
        yield origin


@pytest.fixture
def tls_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    """The same behind TLS, trusted."""
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS_CERT))
    with FaultServer(tls=tls_context()) as origin:
        yield origin
