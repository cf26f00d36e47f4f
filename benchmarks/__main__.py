"""Runs the benchmarks that are named, or all of them, and prints their tables."""

import argparse
import json
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import REGISTRY
from benchmarks.machine import facts
from benchmarks.report import Note, Row, Settings, table


def main() -> int:
    """Exit code 0 unless a benchmark failed to run: a missed bound is in the table."""
    options = _parse()
    with tempfile.TemporaryDirectory(prefix="modelstore-bench-", dir=options.dir) as work:
        report: dict[str, Any] = {"machine": facts(work), "benchmarks": {}}
        print("\n".join(f"{name + ':':<13}{value}" for name, value in report["machine"].items()))
        failed = False
        for name in options.names or REGISTRY:
            directory = Path(work) / name
            directory.mkdir()
            rows, notes, error = _run(name, Settings(directory, options.runs))
            print(f"\n{name}\n{table(rows)}" if rows else f"\n{name}")
            for note in notes:
                print(f"note: {note.text}")
            if error:
                print(error, file=sys.stderr)
            failed |= error is not None
            report["benchmarks"][name] = {
                "rows": [row.to_json() for row in rows],
                "notes": [note.text for note in notes],
                "failed": error is not None,
            }
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if failed else 0


def _run(name: str, settings: Settings) -> tuple[list[Row], list[Note], str | None]:
    """What a benchmark yields, as far as it came, and the traceback if it failed."""
    rows: list[Row] = []
    notes: list[Note] = []
    module, _, function = REGISTRY[name].partition(":")
    try:
        for item in getattr(import_module(module), function)(settings):
            if isinstance(item, Note):
                notes.append(item)
            else:
                rows.append(item)
                print(f"{name}: {item.name}", file=sys.stderr)
    except Exception:  # noqa: BLE001  the others still run
        return rows, notes, traceback.format_exc()
    return rows, notes, None


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run: {', '.join(REGISTRY)} (default: all)")
    parser.add_argument("--runs", type=_positive, default=200, help="calls per measurement (default: 200)")
    parser.add_argument("--dir", help="where to work, to measure another file system (default: the system's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results, with every sample")
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
