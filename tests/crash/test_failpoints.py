"""Killed before or after a named step, with threads: right afterwards, and nothing that was kept is fetched again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.crash import sweep as scenarios
from tests.crash.driver import STEPS
from tests.crash.lab import BIG, CHUNK, MIB, Model, Store, pinned, served, some
from tests.support import Result, digests
from tests.support.httpserver import HttpServer

NewStore = Callable[..., Store]
NOTHING = 64 * 1024  # a few probes
ALL = BIG + NOTHING
# step, before or after, which time, and how many bytes the next fetch may ask of the origin at most.
COLD = [
    ("format.json published", "before", 1, ALL),
    ("format.json published", "after", 1, ALL),
    ("staged file opened", "after", 3, ALL),
    ("journal opened", "before", 1, ALL),
    ("journal opened", "after", 1, ALL),
    ("journal written", "after", 1, ALL),  # its header
    ("piece written", "before", 1, ALL),
    ("piece written", "after", 20, ALL),
    ("journal written", "before", 2, ALL),
    ("journal written", "after", 2, ALL - MIB),  # a chunk is safe: it may be the small one
    ("journal written", "after", 3, ALL - CHUNK - MIB),
    ("journal written", "after", 4, NOTHING),
    ("staged file made read-only", "after", 3, NOTHING),
    ("staged file synced", "before", 3, NOTHING),
    ("staged file synced", "after", 3, NOTHING),
    ("blob published", "before", 1, NOTHING),
    ("blob published", "after", 1, NOTHING),
    ("blobs synced", "after", 1, NOTHING),
    ("sums published", "after", 1, NOTHING),
    ("blob published", "after", 3, NOTHING),  # of the manifest
    ("ref published", "before", 1, NOTHING),
    ("ref published", "after", 1, NOTHING),
    ("tree begun", "after", 1, NOTHING),
    ("tree filled", "after", 1, NOTHING),
    ("tree synced", "after", 1, NOTHING),
    ("tree published", "before", 1, NOTHING),
    ("tree published", "after", 1, NOTHING),
    ("layout recorded", "before", 1, NOTHING),
    ("layout recorded", "after", 1, NOTHING),
]
RESUMED = [
    ("journal opened", "after", 1, ALL - CHUNK),
    ("journal written", "after", 1, ALL - CHUNK),
    ("staged file taken over", "before", 1, ALL - CHUNK),
    ("staged file taken over", "after", 1, ALL - CHUNK),
    ("journal removed", "before", 1, ALL - CHUNK),
    ("journal removed", "after", 1, ALL - CHUNK),
    ("piece written", "after", 10, ALL - CHUNK),
    ("journal written", "after", 3, NOTHING),
]
REPLACED = [
    ("blob published", "after", 2),
    ("ref published", "before", 1),
    ("ref published", "after", 1),
    ("tree begun", "after", 1),
    ("tree filled", "after", 2),
    ("tree published", "before", 2),
    ("tree published", "after", 2),
    ("models synced", "after", 1),
    ("layout recorded", "before", 1),
]
IDS = "{0[0]}, {0[1]} {0[2]}".format
DRIVER = str(Path(__file__).with_name("driver.py"))


def killed_at(store: Store, model: Model, point: tuple[str, str, int], *options: str) -> None:
    step, when, count = point
    program = (sys.executable, DRIVER, step, when, str(count), str(store.inside))
    done: Result = replace(store.command, command=program, options=())(
        *store.command.options, "fetch", model.url, *options
    )
    assert done.returncode == -9, ("the step was never reached", done)
    store.outputs += [done.stdout, done.stderr]
    store.kills += 1


@pytest.mark.parametrize("point", some(COLD, 2), ids=IDS)
def test_first_fetch(store: Store, http_server: HttpServer, point: tuple[str, str, int, int]) -> None:
    """Of a file whose digest is known, so that whatever is complete is found again."""
    model = pinned(served(http_server))
    killed_at(store, model, point[:3])
    store.check(model.tree, size=model.size)
    sent = model.origin.sent
    store.recover(model)
    assert model.origin.sent - sent <= point[3]


@pytest.mark.parametrize("point", some(RESUMED, 2), ids=IDS)
def test_fetch_that_goes_on(store: Store, http_server: HttpServer, point: tuple[str, str, int, int]) -> None:
    """Killed once in the middle, and again while it is resumed."""
    model = served(http_server)
    store.half_done(model)
    killed_at(store, model, point[:3])
    store.check(model.tree, size=model.size)
    sent = model.origin.sent
    store.recover(model)
    assert model.origin.sent - sent <= point[3]


@pytest.mark.parametrize("point", some(REPLACED, 2), ids=IDS)
def test_new_version(store: Store, http_server: HttpServer, tmp_path: Path, point: tuple[str, str, int]) -> None:
    scenario = scenarios.publish(http_server, tmp_path / "sources")
    scenario.prepare(store)
    killed_at(store, scenario.model, point, *scenario.options)
    store.check(*scenario.trees, size=scenario.model.size)
    store.recover(scenario.model, trees=scenario.trees)
    store.recover(scenario.model, *scenario.options)


@pytest.mark.parametrize("step", ["blob published", "sums published", "ref published"])
def test_complete_files_of_many(store: Store, tmp_path: Path, step: str) -> None:
    """Killed when three of four files had come, of a source that tells no digests: they are not read again."""
    source = tmp_path / "source"
    source.mkdir()
    size = 2 * CHUNK + MIB
    for number in range(4):
        (source / f"{number}.bin").write_bytes(bytes([number]) * size)
    model = Model(str(source), digests(source), 4 * size)
    killed_at(store, model, (step, "before", 1) if step == "ref published" else (step, "after", 3))
    store.check(model.tree, size=model.size)
    origin = json.loads(store.recover(model, "--json").stdout)["bytes"]["origin"]
    assert origin <= size + CHUNK


@pytest.mark.parametrize("step", ["blob published", "ref published"])
def test_complete_file_of_unknown_digest(store: Store, http_server: HttpServer, step: str) -> None:
    """Killed between the blob and the ref that would name it, without a pin: a strong ETag says that it is the same."""
    model = served(http_server)
    killed_at(store, model, (step, "before" if step == "ref published" else "after", 1))
    store.check(model.tree, size=model.size)
    sent = model.origin.sent
    store.recover(model)
    assert model.origin.sent - sent <= NOTHING


def test_every_step_is_used() -> None:
    assert {point[0] for point in (*COLD, *RESUMED, *REPLACED)} <= STEPS.keys()
