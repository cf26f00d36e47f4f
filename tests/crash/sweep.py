"""Scenarios to interrupt, and the sweep that attacks one of them at one system call after another."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.crash.lab import MIB, Model, Store, served
from tests.support import digests
from tests.support.httpserver import HttpServer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.crash.checker import Tree

NewStore = Callable[..., Store]
KILLED = 137
RANDOM = re.compile(r"[0-9a-f]{16,}")
NUMBERS = re.compile(r"/(store|proc)-?\d+")


@dataclass(frozen=True)
class Scenario:
    """Something to interrupt: `prepare` makes the state before, then `verb` with `options` is attacked.

    `trees` may be seen afterwards, and `others` must be there still.
    """

    model: Model
    prepare: Callable[[Store], None]
    trees: tuple[Tree, ...]
    options: tuple[str, ...] = ("--connections", "1")
    verb: str = "fetch"
    others: tuple[Model, ...] = ()


def cold(server: HttpServer, folder: Path) -> Scenario:
    model = served(server)
    return Scenario(model, lambda _: None, (model.tree,))


def resume(server: HttpServer, folder: Path) -> Scenario:
    model = served(server)

    def prepare(store: Store) -> None:
        store.half_done(model)

    return Scenario(model, prepare, (model.tree,))


def _versions(folder: Path) -> tuple[Path, Tree, Tree, Callable[[int], None]]:
    """A directory source that can be switched between two versions."""
    source = folder / "source"
    old, new = folder / "old", folder / "new"
    for version, number in ((old, b"1"), (new, b"2")):
        (version / "nested").mkdir(parents=True)
        (version / "config.json").write_bytes(b'{"version":%b}' % number)
        (version / "nested" / "same").write_bytes(b"in both")
        (version / "nested" / f"only in {number.decode()}").write_bytes(b"")
        (version / "model.bin").write_bytes(number * (MIB + 1))

    def switch(number: int) -> None:
        shutil.rmtree(source, ignore_errors=True)
        shutil.copytree(old if number == 1 else new, source)

    return source, digests(old), digests(new), switch


def publish(server: HttpServer, folder: Path) -> Scenario:
    """An old version is replaced by a new one."""
    source, before, after, switch = _versions(folder)
    model = Model(str(source), after, 4 * MIB)

    def prepare(store: Store) -> None:
        switch(1)
        store.fetch(model).ok()
        switch(2)

    return Scenario(model, prepare, (before, after), ("--refresh",))


def publish_to(server: HttpServer, folder: Path) -> Scenario:
    """The same at a target outside the root."""
    source, before, after, switch = _versions(folder)
    model = Model(str(source), after, 4 * MIB)

    def prepare(store: Store) -> None:
        target = store.place.inside / f"{store.name}-serve" / "model"
        store.place.see(target).parent.mkdir(mode=0o755)
        store.targets = (target,)
        switch(1)
        store.fetch(model, "--to", target).ok()
        switch(2)

    return Scenario(model, prepare, (before, after), ("--refresh", "--to", "TARGET"))


def remove(server: HttpServer, folder: Path) -> Scenario:
    """One of two models that share a blob is removed."""
    _, before, after, _ = _versions(folder)
    model = Model(str(folder / "new"), after, 4 * MIB)
    other = Model(str(folder / "old"), before, 4 * MIB)

    def prepare(store: Store) -> None:
        for fetched in (model, other):
            store.fetch(fetched).ok()

    return Scenario(model, prepare, (model.tree, other.tree), (), "remove", (other,))


SCENARIOS = [cold, resume, publish, publish_to, remove]


@dataclass
class Sweep:
    """Attacks one scenario at many calls, in a new store each."""

    scenario: Scenario
    new_store: NewStore
    log: Path
    number: int = 0

    def attack(self, *flags: str) -> tuple[Store, int]:
        """The store after one attacked fetch, and how that ended."""
        self.number += 1
        store = self.new_store(f"store-{self.number}")
        self.scenario.prepare(store)
        done = store.inject(self.scenario.model, self.log, flags, *self.options(store), verb=self.scenario.verb)
        assert "Traceback" not in done.stderr, done
        return store, done.returncode

    def options(self, store: Store) -> list[str]:
        return [str(store.targets[0]) if option == "TARGET" else option for option in self.scenario.options]

    def calls(self) -> list[str]:
        """What an undisturbed run does to the disk, without what differs from run to run."""
        store, code = self.attack()
        assert code == 0
        store.remove()
        return [NUMBERS.sub("", RANDOM.sub("X", line)) for line in self.log.read_text().splitlines()]

    def few(self, count: int) -> list[int]:
        """Numbers of some calls: of the first of each kind, evenly spread."""
        kinds: dict[str, int] = {}
        for number, call in enumerate(self.calls(), 1):
            kinds.setdefault(call, number)
        numbers = sorted(kinds.values())
        return [numbers[at * (len(numbers) - 1) // (count - 1)] for at in range(count)]

    def kill_at(self, number: int) -> bool:
        """False if the run ended before its call of that number."""
        store, code = self.attack("--at", str(number))
        assert code in (0, KILLED), code
        self.judge(store)
        store.remove()
        return code == KILLED

    def judge(self, store: Store) -> None:
        """Whatever happened to it: what is visible is right, and the next fetch works."""
        model, trees = self.scenario.model, self.scenario.trees
        store.check(*trees, size=model.size)
        for other in self.scenario.others:
            store.recover(other, "--offline", trees=trees)
        options = self.options(store)
        if "--refresh" in options:
            options.remove("--refresh")
            store.recover(model, *options, trees=trees)
            options.append("--refresh")
        store.recover(model, *options, trees=trees if self.scenario.others else ())
