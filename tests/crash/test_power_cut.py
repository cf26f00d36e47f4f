"""The power fails: an ext4 of our own is shut down without writing its log, as by xfstests' `godown`, and mounted anew.

What was not synced is lost then. What a fetch returned must be there; what it had not returned is whole or absent.
"""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from tests.crash.lab import BIG, CHUNK, MIB, Model, Place, Store, ext4_image, mounted, served
from tests.support import Modelstore, digests, finish, impossible, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.crash.checker import Watch
    from tests.support.httpserver import HttpServer

Start = Callable[..., "subprocess.Popen[str]"]
SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN
NO_LOG_FLUSH = (2).to_bytes(4, sys.byteorder)
NEVER_SYNCS = """
import os, runpy, sys
os.fsync = os.fdatasync = lambda fd: None
sys.argv[0] = "modelstore"
runpy.run_module("modelstore", run_name="__main__")
"""


def cut(place: Place) -> None:
    """From here on nothing reaches the disk, and what had not reached it by now is lost."""
    fd = os.open(place.seen, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, SHUTDOWN, NO_LOG_FLUSH)
    except OSError as error:
        impossible(f"this ext4 cannot be shut down: {error}")
    finally:
        os.close(fd)


@dataclass
class Machine:
    """A store on a disk that outlives its mounts."""

    store: Store
    folder: Path
    image: Path

    @contextmanager
    def on(self) -> Iterator[Store]:
        """Mounted, until the power is cut or this ends."""
        with mounted("ext4", self.folder, image=self.image) as place:
            self.store.place = place
            yield self.store
            self.store.power_lost = True


@pytest.fixture
def machine(run_modelstore: Modelstore, sentinel: Watch, tmp_path: Path) -> Machine:
    nowhere = Place(tmp_path, tmp_path)
    disks = tmp_path / "disks"
    disks.mkdir()
    return Machine(Store(nowhere, run_modelstore, "store", sentinel), disks, ext4_image(disks))


def fetch_then_cut(machine: Machine, model: Model) -> list[str]:
    """What is wrong after the power fails as soon as a fetch has returned."""
    with machine.on() as store:
        store.fetch(model).ok()
        cut(store.place)
    with machine.on() as store:
        store.check(model.tree, size=model.size)
        offline = store.fetch(model, "--offline")
        return (
            [] if offline.returncode == 0 and digests(store.place.see(offline.path)) == model.tree else [str(offline)]
        )


def test_what_was_returned_stays(machine: Machine, http_server: HttpServer) -> None:
    assert fetch_then_cut(machine, served(http_server)) == []


def test_this_would_notice_missing_syncs(machine: Machine, http_server: HttpServer) -> None:
    """The same with `fsync` taken away loses the model: the test above can fail."""
    cli = machine.store.cli
    machine.store.cli = replace(cli, command=(sys.executable, "-c", NEVER_SYNCS))
    with pytest.raises(AssertionError):
        assert fetch_then_cut(machine, served(http_server)) == []


@pytest.mark.parametrize("at", [MIB, CHUNK + MIB])
def test_cut_in_the_middle(machine: Machine, http_server: HttpServer, start: Start, at: int) -> None:
    model = served(http_server)
    model.origin.pause_at = at
    with machine.on() as store:
        process = start(store.command, "fetch", model.url)
        wait_until(model.origin.paused.is_set, process)
        cut(store.place)
        model.origin.resume.set()
        finish(process).failed(9)
    with machine.on() as store:
        store.kills += 1
        store.check(model.tree, size=model.size)
        store.recover(model)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_cut_at_random(machine: Machine, http_server: HttpServer, start: Start) -> None:
    """Cut at any moment, and again while it recovers."""
    seed = int(os.environ.get("CRASH_SEED") or random.SystemRandom().randrange(2**32))
    print(f"CRASH_SEED={seed}")
    dice = random.Random(seed)
    model = served(http_server, BIG, rate=50 * MIB)
    for _ in range(40):
        with machine.on() as store:
            process = start(store.command, "fetch", model.url)
            with suppress(subprocess.TimeoutExpired):
                process.wait(dice.uniform(0, 1.5))
            cut(store.place)
            done = finish(process)
            assert "Traceback" not in done.stderr, done
            assert done.returncode in (0, 9), done
        with machine.on() as store, ExitStack() as stack:
            store.kills += 1
            store.check(model.tree, size=model.size)
            if done.returncode == 0 or dice.random() < 0.2:
                stack.callback(store.remove)
                store.recover(model)
