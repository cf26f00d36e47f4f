"""What a download costs: the engine, the least that any of this could cost, and the peers that are installed.

Each is a process of its own and fetches the same bytes from nginx on loopback, which reads them from memory, so that
what is measured is the client. Into memory (``tmpfs``), where nothing slows a client down but itself; and to a disk,
with all of it durable when the time ends.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.machine import file_system
from benchmarks.payload import MIB, Payload, make_payload, make_sparse, write_listing
from benchmarks.race import Course
from benchmarks.report import Bound, Entry, Note, Settings
from benchmarks.server import Far, Server, publish, serve
from benchmarks.tools import Contestant, Race, Toolbox, environ

__all__ = ["ground", "memory_for", "race_for", "ratio_bound", "run"]

_SHAPES: Final = {"one": (1, 2048 * MIB), "eight": (8, 256 * MIB), "many": (500, 100 * 1024)}
#: The courses, by name: of each shape, over plain HTTP or TLS, into memory or to disk.
_COURSES: Final = tuple(
    f"{shape}, {scheme}, {place}"
    for shape in _SHAPES
    for scheme, place in (("plain", "tmpfs"), ("tls", "tmpfs"), ("plain", "disk"))
)
_BIG: Final = 16 * 1024 * MIB
_RSS_LIMIT: Final = 128.0
_MEMORY: Final = Path("/dev/shm")
_FAST, _FULL = "modelstore, sums known", "modelstore, SHA-256"


def run(settings: Settings) -> Iterator[Entry | Bound | Note]:
    """Every course, then the bounds over all of them."""
    tools = Toolbox(settings.peers)
    entries: list[Entry] = []
    with ground(settings) as (memory, server):
        for item in _run_all(settings, tools, server, memory):
            if isinstance(item, Entry):
                entries.append(item)
            yield item
    yield Note(f"peers: {tools.versions()}")
    if tools.missing:
        yield Note(f"not installed, so not compared with: {', '.join(tools.missing)}")
    yield from _bounds(entries)


@contextmanager
def ground(settings: Settings, far: Far | None = None) -> Iterator[tuple[Path, Server]]:
    """A directory in memory, and a server of what is in its ``served``; both are gone afterwards."""
    with memory_for(settings) as memory:
        (memory / "served").mkdir()
        with serve(memory / "served", settings.directory, far) as server:
            yield memory, server


@contextmanager
def memory_for(settings: Settings) -> Iterator[Path]:
    """A directory in memory that is gone afterwards."""
    if file_system(str(_MEMORY)) != "tmpfs":
        raise RuntimeError(f"{_MEMORY} is not in memory here, and the files are to be served from there")
    memory = _MEMORY / f"{settings.directory.parent.name}-{settings.directory.name}"
    memory.mkdir(mode=0o700)
    try:
        yield memory
    finally:
        shutil.rmtree(memory, ignore_errors=True)


def _run_all(settings: Settings, tools: Toolbox, server: Server, memory: Path) -> Iterator[Entry | Note]:
    """One shape after the other, so that memory holds the files of only one."""
    for shape, (count, size) in _SHAPES.items():
        courses = [
            name for name in _COURSES if name.startswith(f"{shape},") and all(word in name for word in settings.only)
        ]
        if courses:
            payload = make_payload(server.root, shape, count, max(1, size // 16) if settings.quick else size)
            publish(server, payload)
            for name in courses:
                yield from _run_course(name, settings, tools, server, payload, memory)
            shutil.rmtree(payload.directory)
    if settings.big:
        yield from _run_big(settings, tools, server)


def _run_course(
    name: str, settings: Settings, tools: Toolbox, server: Server, payload: Payload, memory: Path
) -> Iterator[Entry | Note]:
    on_disk, over_tls = name.endswith("disk"), "tls" in name
    target = (settings.directory if on_disk else memory) / "target"
    race = race_for(payload, server.tls if over_tls else server.plain, target, settings, server)
    field = [*_field(tools.contestants(race), settings)]
    if not on_disk and not over_tls:
        field += _field(tools.yardsticks(race), settings)
    if on_disk:
        yield Note(f"{name}: onto {file_system(str(settings.directory))}; peers are followed by sync of their files")
    yield from Course(name, payload, target, durable=on_disk).run(field, settings.runs, environ(race))


def race_for(payload: Payload, endpoint: str, target: Path, settings: Settings, server: Server) -> Race:
    listing = settings.directory / f"{payload.name}.json"
    write_listing(payload.files, listing)
    (settings.directory / "home").mkdir(exist_ok=True)
    return Race(payload, endpoint, target, listing, settings.directory, server.certificate)


def _field(contestants: Iterator[Contestant], settings: Settings) -> Iterator[Contestant]:
    """Those who are not left out."""
    return (each for each in contestants if not any(word in each.name for word in settings.without))


def _run_big(settings: Settings, tools: Toolbox, server: Server) -> Iterator[Entry | Note]:
    """Memory: 16 GiB to disk, and as much of 2 GiB in a container of 256 MiB. One run each."""
    target = settings.directory / "target"
    for size, label in ((_BIG, "16 GiB, plain, disk"), (2048 * MIB, "2 GiB, plain, disk, in 256 MiB of memory")):
        payload = make_sparse(server.root, "sparse", size // (16 if settings.quick else 1))
        race = race_for(payload, server.plain, target, settings, server)
        ours = [each for each in tools.contestants(race) if each.name in (_FAST, _FULL)]
        course = Course(label, payload, target, durable=True)
        if size == _BIG:
            yield from course.run(ours, 1, environ(race), rehearse=False)
        else:
            with _memory_group(256 * MIB) as group:
                if group is None:
                    yield Note("no memory cgroup could be made here, so the small container was not tried")
                else:
                    inside = ["sh", "-c", f'echo $$ > "{group}/cgroup.procs" && exec "$@"', "sh"]
                    boxed = [replace(each, command=[*inside, *each.command]) for each in ours]
                    yield from course.run(boxed, 1, environ(race), rehearse=False)
        shutil.rmtree(payload.directory)


@contextmanager
def _memory_group(limit: int) -> Iterator[Path | None]:
    """A memory cgroup of either version, or None where none can be made."""
    for parent, knob in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        group = Path("/sys/fs/cgroup", parent, f"modelstore-bench-{os.getpid()}")
        if not (group.parent / "cgroup.procs").exists():
            continue
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / knob).write_text(str(limit))
        except OSError:
            group.rmdir()
            continue
        try:
            yield group
        finally:
            with suppress(OSError):
                group.rmdir()
        return
    yield None


def _bounds(entries: Sequence[Entry]) -> Iterator[Bound]:
    """What is promised, as ratios of medians of one course."""
    plain, disk, tls, small = "one, plain, tmpfs", "one, plain, disk", "one, tls, tmpfs", "many, plain, tmpfs"
    for label, course, ours, others, limit in (
        ("2 GiB, plain: sums known to s5cmd", plain, _FAST, ["s5cmd"], 1.0),
        ("2 GiB, plain: sums known to the floor", plain, _FAST, ["floor"], 1.25),
        ("2 GiB, to disk: sums known to s5cmd and sync", disk, _FAST, ["s5cmd"], 0.9),
        ("2 GiB, TLS: sums known to s5cmd", tls, _FAST, ["s5cmd"], 1.2),
        ("2 GiB: SHA-256 to the slower of floor and sha256sum", plain, _FULL, ["floor", "sha256sum"], 1.15),
        ("8 x 256 MiB: the same", "eight, plain, tmpfs", _FULL, ["floor", "sha256sum"], 1.15),
        ("500 x 100 KiB: sums known to s5cmd", small, _FAST, ["s5cmd"], 1.0),
        ("500 x 100 KiB: sums known to hf download", small, _FAST, ["hf"], 0.5),
    ):
        of = [entry for entry in entries if entry.course == course]
        yield ratio_bound(label, [ours], others, of, limit)
    for start, label in (("one,", "2 GiB"), ("16 GiB", "16 GiB")):
        peaks = [each.rss / 1e6 for each in entries if each.course.startswith(start) and each.name.startswith("models")]
        yield Bound(f"{label}: peak RSS", max(peaks, default=None), _RSS_LIMIT, "MB")


def ratio_bound(
    name: str, above: Sequence[str], below: Sequence[str], of: Sequence[Entry], limit: float, *, least: bool = False
) -> Bound:
    """The slowest of those above, by the slowest of those below, each named by how it begins."""
    sides = []
    for names in (above, below):
        found = [next((entry for entry in of if entry.name.startswith(start)), None) for start in names]
        kept = [entry for entry in found if entry]
        if len(kept) < len(names):
            return Bound(name, None, limit, least=least)
        sides.append((max(entry.seconds for entry in kept), max(entry.fastest for entry in kept)))
    (median, fastest), (other, others_fastest) = sides
    return Bound(name, median / other, limit, least=least, best=fastest / others_fastest)
