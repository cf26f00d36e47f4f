"""Killed at a random moment, again and again: the right bytes in the end, and next to nothing fetched twice.

The seed is printed; with it in the environment as CRASH_SEED a run is repeated, as far as time can be.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from tests.crash.lab import CHUNK, MIB, Model, Store, served
from tests.support import ERROR, Result, finish, unshare, wait_until
from tests.support.httpserver import HttpServer, Request

Start = Callable[..., "subprocess.Popen[str]"]
NewStore = Callable[..., Store]
SIZE = 20 * CHUNK
RATE = 300 * MIB  # bytes per second
KILLS = int(os.environ.get("CRASH_KILLS") or 200)  # in the slow run
MANY = 20
LASTS = 2.0  # seconds: about what a fetch takes
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
SOON = 2.0  # seconds in which a signal ends it
LINE = re.compile(rb"(\d+) [0-9a-f]{32}\n")
# As from a terminal: a suite that runs in the background of a shell would hand down an ignored SIGINT.
DEFAULT_SIGINT = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
)


@pytest.fixture
def dice() -> random.Random:
    seed = int(os.environ.get("CRASH_SEED") or random.SystemRandom().randrange(2**32))
    print(f"CRASH_SEED={seed}")
    return random.Random(seed)


def journalled(store: Store) -> set[int]:
    """The chunks that the fullest journal beside a staged file names: what the next fetch can go on with."""
    whole = [journal for journal in store.journals() if journal.with_suffix(".staged").exists()]
    found = [{int(match[1]) for match in LINE.finditer(journal.read_bytes())} for journal in whole]
    return max(found, key=len, default=set())


def asked(requests: list[Request]) -> set[int]:
    """The chunks of which requests sent something, probes of a byte aside."""
    found: set[int] = set()
    for request in requests:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
        if request.body_bytes > 1:
            start, stop = (int(match[1]), int(match[2])) if match else (0, SIZE - 1)
            found |= set(range(start // CHUNK, stop // CHUNK + 1))
    return found


@dataclass
class Loop:
    """Kills fetches of one model, and counts what was saved and what was lost."""

    server: HttpServer
    model: Model
    dice: random.Random
    kills: int = 0
    finished: int = 0  # chunks that were journalled when a process died
    again: int = 0  # of these, downloaded once more
    lengths: list[float] = field(default_factory=list)

    def interrupt(self, store: Store, number: int = signal.SIGKILL, *options: str) -> Result | None:
        """Start a fetch and end it at a random moment; None if it was done before."""
        before, seen = journalled(store), len(self.server.requests)
        command = store.command.with_prefix(*store.command.prefix, sys.executable, "-SEc", DEFAULT_SIGINT)
        # With few connections most of what has come is in whole chunks, with many it is in flight.
        connections = ("--connections", str(self.dice.choice([1, 2, 4, 8])))
        process = command.start("fetch", self.model.url, *(options or connections))
        try:
            # It asks for nothing if what died before it had come as far as the ref.
            wait_until(lambda: len(self.server.requests) > seen or process.poll() is not None, process)
            done = self._end(process, number)
        finally:
            process.kill()
        store.outputs += [done.stdout, done.stderr]
        self.again += len(before & asked(self.server.requests[seen:]))
        if done.stdout:  # the result is out: whatever comes then comes too late
            assert done.returncode in (0, -number), done
            return None
        self.kills += 1
        store.kills += 1
        self.finished += len(journalled(store))
        return done

    def _end(self, process: subprocess.Popen[str], number: int) -> Result:
        try:
            process.wait(self.dice.uniform(0, LASTS))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        begun = time.monotonic()
        done = finish(process)
        self.lengths.append(time.monotonic() - begun)
        return done

    def complete(self, store: Store) -> None:
        """The last fetch, which nobody interrupts."""
        before, seen = journalled(store), len(self.server.requests)
        store.recover(self.model)
        self.again += len(before & asked(self.server.requests[seen:]))

    def judge(self) -> None:
        print(f"{self.kills} kills, {self.again} of {self.finished} finished chunks downloaded again")
        assert self.again <= self.finished * 0.1


def kill_often(loop: Loop, new_store: NewStore, kills: int) -> None:
    while loop.kills < kills:
        store = new_store(f"store-{loop.kills}")
        for _ in range(loop.dice.randint(1, 3)):
            if loop.kills == kills or loop.interrupt(store) is None:
                break
            store.check(loop.model.tree, size=SIZE)
        loop.complete(store)
        store.remove()
    loop.judge()
    assert loop.finished > 0 or kills < MANY, "there was something to keep"


def test_kill_at_random(http_server: HttpServer, new_store: NewStore, dice: random.Random) -> None:
    kill_often(Loop(http_server, served(http_server, SIZE, rate=RATE), dice), new_store, 3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_at_random_often(http_server: HttpServer, new_store: NewStore, dice: random.Random) -> None:
    kill_often(Loop(http_server, served(http_server, SIZE, rate=RATE), dice), new_store, KILLS)


def test_what_is_lost_is_what_was_in_flight(http_server: HttpServer, store: Store, dice: random.Random) -> None:
    """By the origin's count alone: no more than a chunk for each connection is sent twice."""
    model = served(http_server, 10 * CHUNK, rate=RATE / 2)
    loop = Loop(http_server, model, dice)
    loop.interrupt(store, signal.SIGKILL, "--connections", "2")
    store.recover(model)
    assert model.origin.sent <= model.size + loop.kills * 2 * CHUNK + MIB
    loop.judge()


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_signal_at_random(http_server: HttpServer, store: Store, dice: random.Random, number: signal.Signals) -> None:
    signals(http_server, store, dice, number, 1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_signal_at_random_often(
    http_server: HttpServer, new_store: NewStore, dice: random.Random, number: signal.Signals
) -> None:
    for at in range(30):
        store = new_store(f"store-{at}")
        signals(http_server, store, dice, number, dice.randint(1, 3))
        store.remove()


def signals(server: HttpServer, store: Store, dice: random.Random, number: signal.Signals, times: int) -> None:
    """Ended politely: the right exit code, soon, and a state from which the next fetch goes on."""
    loop = Loop(server, served(server, SIZE // 2, rate=RATE / 2), dice)
    for _ in range(times):
        done = loop.interrupt(store, number)
        if done is None:
            break
        ended(done, number)
        assert loop.lengths[-1] <= SOON
        store.check(loop.model.tree, size=SIZE)
    loop.complete(store)
    loop.judge()


def ended(done: Result, number: int) -> None:
    assert done.returncode == CODES[number], done
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == ERROR + {130: "interrupted", 143: "terminated"}[CODES[number]], done
    assert "Traceback" not in done.stderr, done


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_as_process_1(http_server: HttpServer, store: Store, start: Start, number: signal.Signals) -> None:
    """In a container nobody is above it: signals without a handler do nothing there."""
    model = served(http_server)
    model.origin.pause_at = CHUNK + MIB
    prefix = (*unshare("--pid", "--fork", "--kill-child", "--mount-proc"), sys.executable, "-SEc", DEFAULT_SIGINT)
    outer = start(store.command.with_prefix(*prefix), "fetch", model.url, "--connections", "1")
    wait_until(model.origin.paused.is_set, outer)
    os.kill(_only_child(outer.pid), number)
    done = finish(outer, 10)
    store.kills += 1
    ended(done, number)
    store.check(model.tree, size=model.size)
    model.origin.resume.set()
    sent = model.origin.sent
    store.recover(model)
    assert model.origin.sent - sent <= model.size - CHUNK + MIB


def _only_child(pid: int) -> int:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        (child,) = file.read().split()
    return int(child)


def test_one_of_two_is_killed(http_server: HttpServer, store: Store, start: Start, dice: random.Random) -> None:
    """Whichever it is, the other one finishes."""
    model = served(http_server, SIZE // 2, rate=RATE / 2)
    both = [start(store.command, "fetch", model.url) for _ in range(2)]
    wait_until(lambda: len(http_server.requests) > 0, *both)
    victim = dice.randrange(2)
    try:
        both[victim].wait(dice.uniform(0, LASTS / 2))
    except subprocess.TimeoutExpired:
        both[victim].kill()
    finish(both[victim])
    store.kills += 1
    finish(both[1 - victim]).ok()
    store.check(model.tree, size=model.size)
    store.recover(model)


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_paused_writer(http_server: HttpServer, new_store: NewStore, start: Start, times: int) -> None:
    """A process that slept while another one published cannot change what is there, nor does it break anything."""
    for number in range(times):
        store = new_store(f"store-{number}")
        config = store.cli.home.parent / "impatient.toml"
        config.write_text("lock_timeout = 0.2\n")
        store.cli = store.cli.with_env(MODELSTORE_CONFIG=str(config))
        model = served(http_server, seed=number)
        model.origin.pause_at = CHUNK + (number * 7 + 3) * MIB % (CHUNK + MIB)
        zombie = start(store.command, "fetch", model.url, "--connections", "2")
        wait_until(model.origin.paused.is_set, zombie)
        zombie.send_signal(signal.SIGSTOP)
        model.origin.resume.set()
        path = store.place.see(store.fetch(model).path)
        watch = replace(store.watch, published=[store.root / "blobs", path])
        zombie.send_signal(signal.SIGCONT)
        finish(zombie).ok()
        assert watch.violations() == []
        store.kills += 1
        store.check(model.tree, size=model.size)
        store.remove()
