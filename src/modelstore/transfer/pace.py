"""How many ranges to read at once: as many as make it faster, and fewer where that hurts."""

import time
from collections import deque
from threading import Lock
from typing import Final

from modelstore.transfer import limits
from modelstore.transfer.lanes import Lanes

__all__ = ["Pace"]

#: More connections stay if they bring so much more.
_FASTER: Final = 1.1
#: Periods of which the best counts: disks and networks come in bursts.
_RECENT: Final = 4
#: Periods between attempts to go faster once one did not help, and after the server asked for less.
_PATIENCE: Final = 20
_RESPECT: Final = 40


class Pace:
    """Doubles the connections while throughput grows by a tenth or more; halves them when the server is overloaded.

    Never more than ``most``. Slow start and multiplicative decrease, as TCP has them (RFC 5681). ``tick`` is called by
    one thread, ``slow_down`` by any.
    """

    def __init__(self, lanes: Lanes, most: int) -> None:
        self._lanes = lanes
        self._most = most
        self._lock = Lock()
        self._slowed = 0.0
        self._since: float | None = None
        self._bytes = 0
        self._rates: deque[float] = deque([0.0], maxlen=_RECENT)
        self._before: tuple[int, float] | None = None  # the limit that was left for a higher one, and its best rate
        self._rest = 0

    def slow_down(self, asked: float) -> None:
        """The server is overloaded, or says so, to a request made at ``asked`` (seconds of ``time.monotonic``)."""
        with self._lock:
            if asked >= self._slowed:  # the others that were made before are answered the same, and mean no more
                self._slowed = time.monotonic()
                self._lanes.limit = max(1, self._lanes.limit // 2)
                self._before, self._rest = None, _RESPECT

    def tick(self, now: float, total: int) -> None:
        """``total`` bytes have come until ``now`` (seconds of any clock)."""
        if self._since is None:
            self._since, self._bytes = now, total
        elif (seconds := now - self._since) >= limits.PACE_SECONDS:
            with self._lock:
                self._judge((total - self._bytes) / seconds)
            self._since, self._bytes = now, total

    def _judge(self, rate: float) -> None:
        limit = self._lanes.limit
        if self._before and rate < self._before[1] * _FASTER:
            self._lanes.limit = self._before[0]
            self._before, self._rest = None, _PATIENCE
        elif self._rest > 0:
            self._rest -= 1
        elif rate > 0 and limit < self._most and self._lanes.busy:
            self._before = (limit, max(rate, *self._rates))
            self._lanes.limit = min(2 * limit, self._most)
        else:
            self._before = None
        self._rates.append(rate)
