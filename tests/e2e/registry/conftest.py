"""Registries to pull from: a real one, a real one with a password, and the stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import Modelstore, impossible
from tests.support.registry import Registry, find_registry, serve
from tests.support.tokenregistry import Cdn, TokenRegistry


@contextmanager
def _real(work: Path, *, auth: bool) -> Iterator[Registry]:
    program = find_registry()
    if program is None:
        impossible("docker-registry is not installed")
    with serve(program, work, auth=auth) as found:
        yield found


@pytest.fixture
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with _real(tmp_path_factory.mktemp("registry"), auth=False) as found:
        yield found


@pytest.fixture
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """It wants `USER` and `PASSWORD` for everything."""
    with _real(tmp_path_factory.mktemp("locked"), auth=True) as found:
        yield found


@pytest.fixture
def stand_in() -> Iterator[TokenRegistry]:
    with TokenRegistry() as found:
        yield found


@pytest.fixture
def foreign() -> Iterator[TokenRegistry]:
    """Another host, which would gladly take a password."""
    with TokenRegistry("127.0.0.2") as found:
        yield found


@pytest.fixture
def cdn() -> Iterator[Cdn]:
    """Where a registry may redirect to."""
    with Cdn() as found:
        yield found


@pytest.fixture
def cli(cli: Modelstore, tmp_path: Path) -> Modelstore:
    """The command, with no credentials but those that a test gives it."""
    return cli.with_env(DOCKER_CONFIG=str(tmp_path / "docker"))
