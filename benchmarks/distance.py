"""A download from far away, where one connection is slow however fast the line is.

nginx limits each connection, and asks a process that sleeps for a round trip before it answers a request (for two
before the first of a connection). Nothing stands between it and the client, so nothing else is a limit.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from benchmarks.payload import MIB, make_payload
from benchmarks.race import Course
from benchmarks.report import Bound, Entry, Note, Settings
from benchmarks.server import Far, publish
from benchmarks.tools import Contestant, Toolbox, environ
from benchmarks.transfer import ground, race_for, ratio_bound

__all__ = ["run"]

_SIZE: Final = 2048 * MIB
_FAR: Final = Far()
_CEILING: Final = 64
_SINGLE: Final = "one stream: curl"
_OURS: Final = "modelstore, sums known"


def run(settings: Settings) -> Iterator[Entry | Bound | Note]:
    """One file of 2 GiB into memory."""
    tools = Toolbox(settings.peers)
    course = f"2 GiB, {_FAR.trip * 1000:.0f} ms away, {_FAR.rate / 1e6:.0f} MB/s a connection"
    with ground(settings, _FAR) as (memory, server):
        payload = make_payload(server.root, "one", 1, _SIZE // (16 if settings.quick else 1))
        publish(server, payload)
        race = race_for(payload, server.far, memory / "target", settings, server)
        field = [_renamed(each) for each in tools.contestants(race)]
        field = [each for each in field if not any(word in each.name for word in settings.without)]
        ceiling = next(each for each in field if each.name.startswith("floor"))
        field.append(replace(ceiling, name=_ceiling_name(), command=[*ceiling.command, "--connections", str(_CEILING)]))
        entries = []
        for item in Course(course, payload, race.target, durable=False).run(field, settings.runs, environ(race)):
            if isinstance(item, Entry):
                entries.append(item)
            yield item
    seconds = {entry.name: entry.seconds for entry in entries}
    fastest = payload.size / seconds[_ceiling_name()]
    yield Note(
        f"with {_CEILING} connections the server gives {fastest / 1e6:.0f} MB/s: the limits are those of one each"
    )
    if alone := seconds.get(_SINGLE):
        yield Note(f"a single stream gets {payload.size / alone / 1e6:.0f} MB/s")
    yield ratio_bound("far away, 2 GiB: one stream to sums known", [_SINGLE], [_OURS], entries, 8.0, least=True)


def _renamed(each: Contestant) -> Contestant:
    return replace(each, name=_SINGLE) if each.name == "curl" else each


def _ceiling_name() -> str:
    return f"unchecked: urllib3, {_CEILING} threads"
