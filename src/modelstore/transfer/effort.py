"""What all threads of one fetch share: the sign to stop, the bytes counted, and the failures that are still allowed."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Lock

from modelstore.errors import SourceUnavailable
from modelstore.transfer import limits
from modelstore.transfer.lanes import Lanes
from modelstore.transfer.pace import Pace

__all__ = ["Counter", "Effort", "Stopped"]


class Stopped(Exception):
    """Work that goes on for nothing ends with this."""


class Effort:
    """``failure`` is what ends the fetch, ``keep`` whether what is staged may then be left to the next one.

    ``bytes`` are staged by now, ``resumed`` of them by an earlier attempt.
    """

    def __init__(self, lanes: Lanes, pace: Pace, chunks: int) -> None:
        self.keep = True
        self.failure: BaseException | None = None
        self._stopped = False
        self._readings: set[Event] = set()
        self.bytes = self.resumed = self.files = 0
        self._lanes = lanes
        self._pace = pace
        self._failures = 0
        self._budget = limits.FETCH_TRIES + chunks
        self._lock = Lock()

    def count(self, size: int, resumed: int = 0) -> None:
        """Bytes that are staged now, and how many of them had been; less than none if they turn out to be no good."""
        with self._lock:
            self.bytes += size
            self.resumed += resumed

    def state(self) -> tuple[int, int, int]:
        """``bytes``, ``resumed`` and ``files`` of one moment."""
        with self._lock:
            return self.bytes, self.resumed, self.files

    def file_done(self) -> None:
        """One more file is published."""
        with self._lock:
            self.files += 1

    @contextmanager
    def reading(self, over: Event) -> Iterator[None]:
        """While one file is read: ``over`` is set when there is no more use in that."""
        with self._lock:
            self._readings.add(over)
            if self._stopped:
                over.set()
        try:
            yield
        finally:
            with self._lock:
                self._readings.discard(over)

    def stop(self) -> None:
        """The fetch is over."""
        with self._lock:
            self._stopped = True
            for over in self._readings:
                over.set()

    def pause(self, problem: SourceUnavailable, tries: int, asked: float, over: Event) -> None:
        """Wait before the next try, after ``tries`` in a row that came to nothing; or give up, and raise.

        The last of them was made at ``asked``, in seconds of ``time.monotonic``.
        """
        with self._lock:
            self._failures += 1 if tries else 0
            spent = self._failures > self._budget
        if problem.overloaded:
            self._pace.slow_down(asked)
        if spent or tries >= limits.TRIES:
            raise problem
        # Full jitter, so that the chunks of many processes do not come back together.
        delay = min(limits.LONGEST_DELAY, limits.FIRST_DELAY * 2**tries) * random.random()  # noqa: S311
        seconds = max(delay, problem.retry_after or 0.0)
        if self._lanes.step_aside(lambda: over.wait(seconds)) or over.is_set():
            raise Stopped


class Counter:
    """Bytes counted for one try of one file, so that they can be taken back."""

    def __init__(self, effort: Effort) -> None:
        self._effort = effort
        self._lock = Lock()
        self._sum = self.resumed = 0

    def add(self, size: int, resumed: int = 0) -> None:
        with self._lock:
            self._sum += size
            self.resumed += resumed
        self._effort.count(size, resumed)

    def undo(self) -> None:
        self._effort.count(-self._sum, -self.resumed)
        self._sum = self.resumed = 0
