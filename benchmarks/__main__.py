"""Runs the benchmarks that are named, or all of them, and prints their tables."""

import argparse
import json
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import REGISTRY
from benchmarks.chart import draw
from benchmarks.machine import facts
from benchmarks.report import Bound, Entry, Note, Row, Settings, bounds_table, race_table, table


@dataclass
class _Result:
    """What a benchmark yielded, as far as it came, and the traceback if it failed."""

    rows: list[Row] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    bounds: list[Bound] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    error: str | None = None

    def add(self, item: Row | Entry | Bound | Note) -> None:
        kinds: dict[type, list[Any]] = {Row: self.rows, Entry: self.entries, Bound: self.bounds, Note: self.notes}
        kinds[type(item)].append(item)

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": [row.to_json() for row in self.rows],
            "downloads": [entry.to_json() for entry in self.entries],
            "bounds": [bound.to_json() for bound in self.bounds],
            "notes": [note.text for note in self.notes],
            "failed": self.error is not None,
        }


def main() -> int:
    """Exit code 0 unless a benchmark failed to run: a missed bound is in the table."""
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped and files removed
    results: dict[str, _Result] = {}
    with tempfile.TemporaryDirectory(prefix="modelstore-bench-", dir=options.dir) as work:
        machine = facts(work)
        print("\n".join(f"{name + ':':<13}{value}" for name, value in machine.items()))
        for name in options.names or REGISTRY:
            directory = Path(work) / name
            directory.mkdir()
            results[name] = _run(name, _settings(name, directory, options))
            _print(name, results[name])
    if options.json:
        report = {"machine": machine, "benchmarks": {name: result.to_json() for name, result in results.items()}}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.png:
        entries = [entry for result in results.values() for entry in result.entries]
        if problem := draw(entries, options.png):
            print(f"note: {problem}")
    return 1 if any(result.error for result in results.values()) else 0


def _settings(name: str, directory: Path, options: argparse.Namespace) -> Settings:
    runs = options.runs or REGISTRY[name][1]
    return Settings(directory, runs, options.peers, options.only, options.without, options.big, options.quick)


def _run(name: str, settings: Settings) -> _Result:
    result = _Result()
    module, _, function = REGISTRY[name][0].partition(":")
    try:
        for item in getattr(import_module(module), function)(settings):
            result.add(item)
            if isinstance(item, (Row, Entry)):
                print(f"{name}: {item.name}", file=sys.stderr)
    except Exception:  # noqa: BLE001  the others still run
        result.error = traceback.format_exc()
    return result


def _print(name: str, result: _Result) -> None:
    print(f"\n{name}")
    if result.rows:
        print(table(result.rows))
    for course in dict.fromkeys(entry.course for entry in result.entries):
        print(f"\n{course}\n{race_table(_of(course, result.entries))}")
    if result.bounds:
        print(f"\n{bounds_table(result.bounds)}")
    for note in result.notes:
        print(f"note: {note.text}")
    if result.error:
        print(result.error, file=sys.stderr)


def _of(course: str, entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.course == course]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run: {', '.join(REGISTRY)} (default: all)")
    runs = ", ".join(f"{count} for {name}" for name, (_, count) in REGISTRY.items())
    parser.add_argument("--runs", type=_positive, help=f"calls, or downloads, per measurement (default: {runs})")
    parser.add_argument("--dir", help="where to work, to measure another file system (default: the system's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results, with every sample")
    parser.add_argument("--png", type=Path, metavar="FILE", help="also draw the downloads (needs matplotlib)")
    group = parser.add_argument_group("downloads")
    add = group.add_argument
    add("--peers", type=Path, action="append", default=[], metavar="DIR", help="a virtual environment with other tools")
    add(
        "--only",
        action="append",
        default=[],
        metavar="WORD",
        help="transfer, hub: courses with this in their name, as 'one' or 'tls'",
    )
    add("--without", action="append", default=[], metavar="WORD", help="contestants to leave out, as 's3fs'")
    add("--big", action="store_true", help="also 16 GiB to disk, and a small memory cgroup")
    add("--quick", action="store_true", help="files of a sixteenth, to try the benchmark and not the engine")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(REGISTRY))
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}; known are {', '.join(REGISTRY)}")
    return options


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
