"""What a benchmark is given, what it yields, and the table of that."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["Note", "Row", "Settings", "table"]


@dataclass(frozen=True)
class Settings:
    """``directory`` is empty and removed afterwards. ``runs`` is how often a call that takes microseconds is made."""

    directory: Path
    runs: int

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


def table(rows: Sequence[Row]) -> str:
    """The rows as text, for people. A bound is ``ok`` or ``OVER``."""
    cells = [("", "runs", "median", "min", "max", "limit or ratio", "")]
    for row in rows:
        times = [_milliseconds(value) for value in (row.median, min(row.samples), max(row.samples))]
        verdict = {True: "ok", False: "OVER", None: ""}[row.ok]
        cells.append((row.name, str(len(row.samples)), times[0], times[1], times[2], row.bound, verdict))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = []
    for name, *rest in cells:
        right = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *right]).rstrip())
    return "\n".join(lines)


def _milliseconds(seconds: float) -> str:
    value = seconds * 1000
    return f"{value:.3f} ms" if value < 10 else f"{value:.1f} ms"
