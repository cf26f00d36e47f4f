"""What a benchmark is given, what it yields, and the tables of that."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import Usage

__all__ = ["Bound", "Entry", "Note", "Row", "Settings", "bounds_table", "race_table", "table"]


@dataclass(frozen=True)
class Settings:
    """``directory`` is empty and removed afterwards. ``runs`` is how often a call that takes microseconds is made.

    Downloads: ``peers`` are directories to find other tools in; ``only`` names the courses, or those in them, to run
    (parts of their names); ``big`` adds what writes 16 GiB; ``quick`` makes the files small, to try the benchmark out.
    """

    directory: Path
    runs: int
    peers: Sequence[Path] = ()
    only: Sequence[str] = ()
    without: Sequence[str] = ()
    big: bool = False
    quick: bool = False

    def share(self, part: int, least: int = 5) -> int:
        """How often to do what takes ``part`` times as long."""
        return max(least, self.runs // part)


@dataclass(frozen=True)
class Note:
    """Something to know about the rows before it."""

    text: str


@dataclass(frozen=True)
class Row:
    """One measurement: seconds per call, in the order in which they were taken.

    ``limit`` is the bound on the median in seconds, or, with ``baseline``, on the ratio of the two medians.
    A row with neither is there to compare with.
    """

    name: str
    samples: Sequence[float]
    limit: float | None = None
    baseline: "Row | None" = None

    @property
    def median(self) -> float:
        return median(self.samples)

    @property
    def ratio(self) -> float | None:
        """How many times the median of ``baseline``."""
        return self.median / self.baseline.median if self.baseline else None

    @property
    def ok(self) -> bool | None:
        """Whether the bound is kept; None if there is none."""
        if self.limit is None:
            return None
        return (self.median if self.ratio is None else self.ratio) <= self.limit

    @property
    def bound(self) -> str:
        """The bound, and how the median stands to it."""
        if self.baseline and self.ratio is not None:
            return f"{self.ratio:.2f}x {self.baseline.name}" + (f" < {self.limit:g}x" if self.limit else "")
        return "" if self.limit is None else f"< {_milliseconds(self.limit)}"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "runs": len(self.samples),
            "median": self.median,
            "min": min(self.samples),
            "max": max(self.samples),
            "limit": self.limit,
            "ratio": self.ratio,
            "baseline": self.baseline.name if self.baseline else None,
            "ok": self.ok,
            "samples": list(self.samples),
        }


@dataclass(frozen=True)
class Entry:
    """One contestant of a download: what each of its runs took. Those of one ``course`` stand in one table."""

    course: str
    name: str
    samples: Sequence[Usage]

    @property
    def seconds(self) -> float:
        return median(usage.seconds for usage in self.samples)

    @property
    def fastest(self) -> float:
        return min(usage.seconds for usage in self.samples)

    @property
    def cpu(self) -> float:
        return median(usage.cpu for usage in self.samples)

    @property
    def rss(self) -> int:
        """The highest of all runs."""
        return max(usage.rss for usage in self.samples)

    @property
    def written(self) -> float:
        return median(usage.written for usage in self.samples)

    def to_json(self) -> dict[str, Any]:
        return {
            "course": self.course,
            "name": self.name,
            "runs": len(self.samples),
            "median": self.seconds,
            "min": self.fastest,
            "max": max(usage.seconds for usage in self.samples),
            "cpu": self.cpu,
            "rss": self.rss,
            "written": self.written,
            "samples": [usage.seconds for usage in self.samples],
        }


@dataclass(frozen=True)
class Bound:
    """A promise, and what was measured; None if what it takes was not there. ``least``: not less, instead of more.

    ``best`` is the same of the fastest runs, which says more where others use the machine too.
    """

    name: str
    value: float | None
    limit: float
    unit: str = "x"
    least: bool = False
    best: float | None = None

    @property
    def ok(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.limit if self.least else self.value <= self.limit

    def to_json(self) -> dict[str, Any]:
        limit = {"limit": self.limit, "unit": self.unit, "ok": self.ok}
        return {"name": self.name, "value": self.value, "best": self.best, **limit}


def table(rows: Sequence[Row]) -> str:
    """The rows as text, for people. A bound is ``ok`` or ``OVER``."""
    cells = [("", "runs", "median", "min", "max", "limit or ratio", "")]
    for row in rows:
        times = [_milliseconds(value) for value in (row.median, min(row.samples), max(row.samples))]
        verdict = {True: "ok", False: "OVER", None: ""}[row.ok]
        cells.append((row.name, str(len(row.samples)), times[0], times[1], times[2], row.bound, verdict))
    return _columns(cells)


def race_table(entries: Sequence[Entry]) -> str:
    """One course: seconds, what they cost, and the ratios to those that everybody is compared with."""
    found = {
        base: next((entry.seconds for entry in entries if entry.name.startswith(base)), None)
        for base in ("s5cmd", "hf", "floor")
    }
    bases = {base: seconds for base, seconds in found.items() if seconds}
    columns = ["", "runs", "median s", "min", "max", "CPU s", "RSS MB", "disk MB"]
    cells: list[Sequence[str]] = [(*columns, *(f"x {base}" for base in bases))]
    for entry in entries:
        times = [usage.seconds for usage in entry.samples]
        numbers = [f"{value:.2f}" for value in (entry.seconds, min(times), max(times), entry.cpu)]
        sizes = [f"{entry.rss / 1e6:.0f}", f"{entry.written / 1e6:.0f}"]
        ratios = [f"{entry.seconds / base:.2f}" for base in bases.values()]
        cells.append((entry.name, str(len(times)), *numbers, *sizes, *ratios))
    return _columns(cells)


def bounds_table(bounds: Sequence[Bound]) -> str:
    """Every bound: ``met``, ``MISSED`` or ``not measured``."""
    cells: list[Sequence[str]] = [("bound", "measured", "of the fastest", "limit", "")]
    for bound in bounds:
        measured = "" if bound.value is None else f"{bound.value:.2f} {bound.unit}"
        best = "" if bound.best is None else f"{bound.best:.2f} {bound.unit}"
        limit = f"{'>=' if bound.least else '<='} {bound.limit:g} {bound.unit}"
        cells.append(
            (bound.name, measured, best, limit, {True: "met", False: "MISSED", None: "not measured"}[bound.ok])
        )
    return _columns(cells)


def _columns(cells: Sequence[Sequence[str]]) -> str:
    """The first column to the left, all others to the right."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = []
    for name, *rest in cells:
        right = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *right]).rstrip())
    return "\n".join(lines)


def _milliseconds(seconds: float) -> str:
    value = seconds * 1000
    return f"{value:.3f} ms" if value < 10 else f"{value:.1f} ms"
