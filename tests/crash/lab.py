"""What the crash tests share: stores to break on file systems of their own, and what must hold of them afterwards."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.crash.checker import Limits, Tree, Watch, leaks, violations
from tests.support import Modelstore, Result, finish, impossible, unshare, wait_until
from tests.support.httpserver import HttpServer, PatternBody, Resource

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MIB = 1 << 20
CHUNK = 16 * MIB
SECRET = "planted-token-hunter2"  # in the userinfo of every URL: no file and no output may have it
BIG = 2 * CHUNK + MIB  # two whole chunks and a bit: the least that has something to resume


@dataclass(frozen=True)
class Place:
    """A directory on some file system: as commands see it, which run behind `prefix`, and as this process does."""

    inside: Path
    seen: Path
    prefix: tuple[str, ...] = ()

    def see(self, path: Path) -> Path:
        return self.seen / path.relative_to(self.inside)

    def run(self, *command: Path | str) -> None:
        subprocess.run([*self.prefix, *map(str, command)], check=True, capture_output=True, timeout=60)


MOUNT = 'mount -o "$1" -t "$2" "$3" "$0" && echo mounted && exec cat'


@contextmanager
def mounted(kind: str, folder: Path, options: str = "", *, image: Path | None = None) -> Iterator[Place]:
    """A file system that lives as long as this context, in a mount namespace of its own: nothing stays mounted.

    An ext4 is in `image`, or in a new one.
    """
    inside = folder / f"{kind}-{len(os.listdir(folder))}"
    inside.mkdir()
    device = "tmpfs"
    if kind == "ext4":
        device, options = str(image or ext4_image(folder)), ",".join(filter(None, ("loop", options)))
    command = [*unshare("--mount", script=MOUNT, root=inside), options or "rw", kind, device]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as holder:
        assert holder.stdout
        if holder.stdout.readline() != "mounted\n":
            impossible(f"{kind} cannot be mounted: {holder.communicate()[1]}")
        user = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        prefix = ("nsenter", "--target", str(holder.pid), *user, "--mount", "--")
        seen = Path(f"/proc/{holder.pid}/root{inside}")
        seen.chmod(0o755)
        shutil.rmtree(seen / "lost+found", ignore_errors=True)
        place = Place(inside, seen, prefix)
        try:
            yield place
        finally:
            with suppress(subprocess.CalledProcessError):  # still in use: it goes with the namespace
                place.run("umount", inside)
            holder.communicate()


def ext4_image(folder: Path, *options: str, size: int = 256 * MIB) -> Path:
    program = shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if program is None or os.geteuid() != 0:
        impossible("an ext4 of our own needs e2fsprogs and root")
    image = folder / f"ext4-{len(os.listdir(folder))}.img"
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([program, "-q", "-F", "-m", "0", *options, image], check=True, capture_output=True)
    return image


@dataclass(frozen=True)
class Model:
    """What is fetched: its URL, and the tree that it is."""

    url: str
    tree: Tree
    size: int
    resource: Resource | None = None

    @property
    def origin(self) -> Resource:
        assert self.resource
        return self.resource


def served(server: HttpServer, size: int = BIG, *, seed: int = 0, rate: float | None = None, **behaviour: Any) -> Model:
    """A model of one file behind a password that is the planted secret; `rate` in bytes per second."""
    body = PatternBody(size, seed)
    path = f"/m{len(server.resources)}.gguf"
    sent = Throttled(body, rate) if rate else body
    resource = server.add(path, sent, auth=f"user:{SECRET}", **behaviour)
    url = resource.url.replace("http://", f"http://user:{SECRET}@")
    return Model(url, {path[1:]: body.sha256}, size, resource)


def some(cases: Iterable[Any], every: int) -> list[Any]:
    """All these parameters: every so many of them in the default run, the others in the slow one."""
    return [pytest.param(case, marks=[pytest.mark.slow] * bool(at % every)) for at, case in enumerate(cases)]


def pinned(model: Model) -> Model:
    """The same, with its digest known beforehand."""
    (digest,) = model.tree.values()
    return replace(model, url=f"{model.url}#sha256={digest}")


class Throttled:
    """A body that comes at a rate, over all its readers together."""

    def __init__(self, body: PatternBody, rate: float) -> None:
        self._body, self._rate, self._free = body, rate, 0.0
        self._lock = threading.Lock()
        self.size, self.tag = body.size, body.tag

    @property
    def sha256(self) -> str:
        return self._body.sha256

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        for piece in self._body.read(start, stop):
            with self._lock:
                now = time.monotonic()
                turn = max(now, self._free)
                self._free = turn + len(piece) / self._rate
            time.sleep(turn - now)
            yield piece


@dataclass
class Store:
    """One root to break. `kills` counts what may have left something behind."""

    place: Place
    cli: Modelstore
    name: str
    watch: Watch
    kills: int = 0
    targets: tuple[Path, ...] = ()
    power_lost: bool = False
    outputs: list[str] = field(default_factory=list)

    @property
    def root(self) -> Path:
        """As this process sees it."""
        return self.place.seen / self.name

    @property
    def inside(self) -> Path:
        """As the command sees it."""
        return self.place.inside / self.name

    @property
    def command(self) -> Modelstore:
        return self.cli.at(self.inside).with_prefix(*self.place.prefix, *self.cli.prefix)

    def fetch(
        self, model: Model, *options: Path | str, prefix: tuple[str, ...] = (), verb: str = "fetch", **popen: Any
    ) -> Result:
        command = self.command
        done = replace(command, prefix=(*command.prefix, *prefix))(verb, model.url, *options, **popen)
        self.outputs += [done.stdout, done.stderr]
        return done

    def inject(
        self, model: Model, log: Path, flags: tuple[str, ...], *options: Path | str, verb: str = "fetch"
    ) -> Result:
        """Fetch (or another verb) with inject.py around it; 137 if the command was killed."""
        below = itertools.chain.from_iterable(("--below", str(path)) for path in (self.inside, *self.targets))
        program = (sys.executable, str(Path(__file__).with_name("inject.py")))
        done = self.fetch(model, *options, prefix=(*program, *below, "--log", str(log), *flags), verb=verb)
        if done.returncode == 126:
            impossible(done.stderr)
        self.kills += done.returncode == 137
        return done

    def check(self, *trees: Tree, size: int) -> None:
        """Whatever has happened by now: what is visible is right, and what is left is bounded."""
        # Of each file a staged one and its journal, and a small record on its way.
        files = 1 + 2 * max(map(len, trees), default=1)
        limits = Limits(files * self.kills, (size + MIB) * self.kills, self.kills)
        wrong = violations(
            self.root,
            targets=[self.place.see(target) for target in self.targets],
            trees=trees,
            secrets=[SECRET],
            limits=limits,
            power_lost=self.power_lost,
        )
        wrong += self.watch.violations()
        assert not wrong, wrong
        assert not leaks("".join(self.outputs), [SECRET]), "the secret was printed"

    def recover(self, model: Model, *options: Path | str, trees: tuple[Tree, ...] = (), timeout: float = 60) -> Result:
        """The next plain fetch works without help."""
        done = self.fetch(model, *options, timeout=timeout)
        assert done.returncode == 0, done
        path = Path(json.loads(done.stdout)["path"] if "--json" in options else done.path)
        self.check(*(trees or (model.tree,)), size=model.size)
        assert self.place.see(path).is_dir()
        return done

    def half_done(self, model: Model, chunks: int = 1, *options: Path | str, number: int = signal.SIGKILL) -> int:
        """Have a fetch killed when `chunks` chunks are in the journal and more are on their way; the bytes it asked."""
        origin = model.origin
        before = origin.sent
        origin.paused.clear()
        origin.resume.clear()
        origin.pause_at = before + chunks * CHUNK + MIB // 2
        process = self.command.start("fetch", model.url, "--connections", "1", *options)
        try:
            wait_until(origin.paused.is_set, process)
            process.send_signal(number)
            done = finish(process, 5)
        finally:
            process.kill()
        self.outputs += [done.stdout, done.stderr]
        self.kills += 1
        origin.pause_at = None
        origin.resume.set()
        return origin.sent - before

    def ingest(self) -> list[Path]:
        folder = self.root / ".modelstore" / "ingest"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def journals(self) -> list[Path]:
        return [path for path in self.ingest() if path.name.endswith(".journal")]

    def remove(self) -> None:
        """Make room for the next one."""
        shutil.rmtree(self.root, ignore_errors=True)
        for target in self.targets:
            shutil.rmtree(self.place.see(target).parent, ignore_errors=True)
