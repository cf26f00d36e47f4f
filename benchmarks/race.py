"""Downloads beside each other: the same bytes, from the same server, into a place as empty and as warm for each."""

import hashlib
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.measure import Usage, run_command
from benchmarks.payload import MIB, Payload
from benchmarks.report import Entry, Note
from benchmarks.tools import Contestant

__all__ = ["Course"]

#: Bytes of new memory that a run is sure to find warm.
_WARM = 3 * 1024 * MIB


class Course:
    """Where a payload is downloaded to, and how a run there begins and ends.

    ``durable``: what was written has to survive a power cut. A contestant that does not see to that is followed by
    ``sync`` of each file that it wrote, within its time.
    """

    def __init__(self, name: str, payload: Payload, target: Path, *, durable: bool) -> None:
        self.name = name
        self._payload = payload
        self._target = target
        self._durable = durable

    def run(
        self, contestants: Sequence[Contestant], runs: int, environ: Mapping[str, str], *, rehearse: bool = True
    ) -> Iterator[Entry | Note]:
        """All contestants in each round, in an order that alternates. The first round compares every byte, and does
        not count if it is there to ``rehearse``. A peer that fails is left out, with a note.
        """
        field = list(contestants)
        samples: dict[str, list[Usage]] = {contestant.name: [] for contestant in field}
        first = -1 if rehearse else 0
        for number in range(first, runs):
            for contestant in field[:: 1 if number % 2 else -1]:
                try:
                    usage = self._run(contestant, environ, thorough=number == first)
                except RuntimeError as error:
                    if contestant.name.startswith(("modelstore", "floor")):
                        raise
                    field.remove(contestant)
                    del samples[contestant.name]
                    yield Note(f"{self.name}: {error}"[:400])
                else:
                    if number >= 0:
                        samples[contestant.name].append(usage)
        for name, taken in samples.items():
            yield Entry(self.name, name, tuple(taken))

    def _run(self, contestant: Contestant, environ: Mapping[str, str], *, thorough: bool) -> Usage:
        self._clear()
        _warm(self._target, min(self._payload.size, _WARM))
        if self._durable:
            subprocess.run(["sync", "-f", str(self._target)], check=True)  # nobody pays for earlier writes
        command = contestant.command
        if self._durable and not contestant.durable and contestant.place:
            script = 'to=$1; shift; "$@" && exec find "$to" -exec sync {} +'
            command = ["sh", "-c", script, "sh", str(self._target), *command]
        try:
            usage = run_command(contestant.name, command, environ)
            self._check(contestant, thorough=thorough)
        finally:
            self._clear()
        return usage

    def _check(self, contestant: Contestant, *, thorough: bool) -> None:
        """Whether every file is there, as long as it should be, and with the right bytes."""
        if contestant.place is None:
            return
        for file in self._payload.files:
            place = self._target / contestant.place(file)
            size = place.stat().st_size if place.is_file() else None
            if size != file.size:
                raise RuntimeError(f"{contestant.name}: {file.name} has {size} bytes instead of {file.size}")
            if thorough:
                with place.open("rb") as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
                        raise RuntimeError(f"{contestant.name}: {file.name} has wrong bytes")

    def _clear(self) -> None:
        shutil.rmtree(self._target, ignore_errors=True)
        self._target.mkdir(parents=True)


def _warm(directory: Path, size: int) -> None:
    """Let memory that this run will take have been used a moment ago.

    A virtual machine hands freed memory back to its host; whoever comes first afterwards waits for it to return, which
    can take longer than the download.
    """
    block = bytes(MIB)
    path = directory / "warm"
    with path.open("wb", buffering=0) as stream:
        for _ in range(size // MIB + 64):
            stream.write(block)
    path.unlink()
