"""Fixtures of the crash tests."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.crash.checker import Watch
from tests.crash.lab import Place, Store, mounted
from tests.crash.sweep import Sweep
from tests.support import Modelstore
from tests.support.httpserver import HttpServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def sentinel(run_modelstore: Modelstore, tmp_path: Path) -> Watch:
    """Files that nobody has asked anybody to touch: beside the store, and in the home directory."""
    outside = tmp_path / "outside"
    (outside / "below").mkdir(parents=True)
    (outside / "file").write_text("mine")
    (outside / "below" / "read-only").write_text("mine, too")
    (outside / "below" / "read-only").chmod(0o400)
    (outside / "link").symlink_to("file")
    return Watch(outside=[outside, run_modelstore.home])


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Where the stores are: a plain directory, or (parametrized with its type) a file system of its own."""
    kind = getattr(request, "param", None)
    with ExitStack() as stack:
        if kind is None:
            (tmp_path / "place").mkdir()
            yield Place(tmp_path / "place", tmp_path / "place")
        else:
            yield stack.enter_context(mounted(kind, tmp_path))


@pytest.fixture
def new_store(run_modelstore: Modelstore, sentinel: Watch, place: Place) -> Callable[..., Store]:
    """`new_store("name")`: an empty store in `place`."""

    def make(name: str = "store") -> Store:
        return Store(place, run_modelstore, name, sentinel)

    return make


@pytest.fixture
def store(new_store: Callable[..., Store]) -> Store:
    return new_store()


@pytest.fixture
def sweep(
    request: pytest.FixtureRequest, http_server: HttpServer, new_store: Callable[..., Store], tmp_path: Path
) -> Sweep:
    """A sweep over the scenario that the test is parametrized with."""
    (tmp_path / "sources").mkdir()
    return Sweep(request.param(http_server, tmp_path / "sources"), new_store, tmp_path / "calls")
