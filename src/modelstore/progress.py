"""Progress of a fetch: what is reported, and two ways to show it."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

__all__ = ["LogProgress", "Progress", "ProgressUpdate", "TerminalProgress", "human_size", "human_time"]

#: Seconds between lines in a log: often enough to see that it moves, rare enough to read (`kubectl logs`).
LOG_INTERVAL = 10.0


@dataclass(frozen=True, slots=True)
class ProgressUpdate:
    """How far a fetch has come, in bytes and files of the model's missing blobs. ``done`` marks the last update.

    ``bytes_resumed`` of ``bytes_done`` are from an earlier attempt that was cut off.
    """

    bytes_done: int
    bytes_total: int
    files_done: int
    files_total: int
    done: bool = False
    bytes_resumed: int = 0

    def rate(self, seconds: float) -> float:
        """Bytes per second, when the fetch has taken so many seconds."""
        return (self.bytes_done - self.bytes_resumed) / seconds if seconds > 0 else 0.0

    def eta(self, seconds: float) -> float | None:
        """Seconds that the rest will take at that rate; None while there is no rate to tell by."""
        rate = self.rate(seconds)
        return (self.bytes_total - self.bytes_done) / rate if rate > 0 else None


#: Called from the thread that called ``fetch``, at most about ten times a second, and once more at the end.
Progress: TypeAlias = Callable[[ProgressUpdate], None]


def human_size(size: float) -> str:
    """A size in bytes with a binary unit: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def human_time(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: ``1:02:03``, ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class TerminalProgress:
    """A tqdm bar on a terminal."""

    def __init__(self, label: str, stream: IO[str] | None = None) -> None:
        self._label = label
        self._stream = stream or sys.stderr
        self._bar: Any = None

    def __call__(self, update: ProgressUpdate) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=update.bytes_total,
                desc=self._label,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                file=self._stream,
                leave=False,
                dynamic_ncols=True,
            )
        self._bar.initial = update.bytes_resumed  # the rate is that of what was read now
        self._bar.update(update.bytes_done - self._bar.n)
        if update.done:
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class LogProgress:
    """One line every ten seconds: plain text, or a JSON object with ``as_json``."""

    def __init__(self, write: Callable[[str], None], *, as_json: bool = False, interval: float = LOG_INTERVAL) -> None:
        self._write = write
        self._format = _json_line if as_json else _text_line
        self._interval = interval
        self._started = time.monotonic()
        self._next = self._started + interval

    def __call__(self, update: ProgressUpdate) -> None:
        now = time.monotonic()
        if update.done or now >= self._next:
            self._next = now + self._interval
            self._write(self._format(update, now - self._started))

    def close(self) -> None:
        """Nothing to tidy up: a line once written stands."""


def _text_line(update: ProgressUpdate, seconds: float) -> str:
    percent = 100 * update.bytes_done // update.bytes_total if update.bytes_total else 100
    left = update.eta(seconds)
    eta = "" if left is None or update.done else f", {human_time(left)} left"
    return (
        f"{human_size(update.bytes_done)} of {human_size(update.bytes_total)} ({percent}%), "
        f"{update.files_done}/{update.files_total} files, {human_size(update.rate(seconds))}/s{eta}"
    )


def _json_line(update: ProgressUpdate, seconds: float) -> str:
    eta = update.eta(seconds)
    fields = {
        "event": "progress",
        "bytes_done": update.bytes_done,
        "bytes_total": update.bytes_total,
        "files_done": update.files_done,
        "files_total": update.files_total,
        "bytes_resumed": update.bytes_resumed,
        "bytes_per_second": round(update.rate(seconds)),
        "eta_seconds": None if eta is None else round(eta, 3),
        "seconds": round(seconds, 3),
    }
    return json.dumps(fields)
