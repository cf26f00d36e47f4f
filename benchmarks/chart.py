"""The downloads as bars, if matplotlib is installed."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import Entry

__all__ = ["draw"]


def draw(entries: Sequence[Entry], path: Path) -> str | None:
    """Write a PNG, one panel per course; what to say if that was not possible."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return "matplotlib is not installed, so there is no chart"
    courses = list(dict.fromkeys(entry.course for entry in entries))
    if not courses:
        return "no downloads were measured, so there is no chart"
    columns = min(3, len(courses))
    lines = -(-len(courses) // columns)
    figure = Figure(figsize=(6.4 * columns, 4 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel, course in zip(panels, courses, strict=False):
        shown = sorted((entry for entry in entries if entry.course == course), key=lambda entry: -entry.seconds)
        colours = [_colour(entry.name) for entry in shown]
        bars = panel.barh([entry.name for entry in shown], [entry.seconds for entry in shown], color=colours)
        panel.bar_label(bars, fmt="%.2f", padding=3)
        panel.margins(x=0.12)
        panel.set_title(course)
        panel.set_xlabel("seconds, median")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(courses) :]:
        panel.set_visible(False)
    figure.savefig(path, format="png", dpi=120)
    return None


def _colour(name: str) -> str:
    if name.startswith("modelstore"):
        return "#d1495b"
    return "#66a182" if name.startswith("floor") else "#9aa5b1"
