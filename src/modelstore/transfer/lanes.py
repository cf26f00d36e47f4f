"""The worker pool: threads that take work from several queues in turn, and whose number can change meanwhile."""

from collections import deque
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future
from threading import Condition, Thread, current_thread
from typing import Any, TypeVar

__all__ = ["Lanes"]

T = TypeVar("T")
_Lane = deque[tuple["Future[Any]", Callable[[], Any]]]


class Lanes:
    """Runs tasks, ``limit`` at once. Each ``submit`` makes a lane of its own, and lanes take turns: no file waits for
    the end of another. Threads are started when there is work for them, and end with ``close``."""

    def __init__(self, limit: int, name: str = "modelstore-range") -> None:
        self._limit = limit
        self._name = name
        self._workers: set[Thread] = set()
        self._lanes: deque[_Lane] = deque()
        self._wake = Condition()
        self._running = self._aside = 0
        self._closed = False

    @property
    def limit(self) -> int:
        """How many tasks may run at once."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        with self._wake:
            self._limit = limit
            self._start_threads()
            self._wake.notify_all()

    @property
    def busy(self) -> bool:
        """Whether there is more work than may run at once."""
        with self._wake:
            return bool(self._lanes) and self._running >= self._limit

    def submit(self, tasks: Iterable[Callable[[], T]]) -> list["Future[T]"]:
        """Queue tasks as a lane. A task whose future is cancelled in time is not run."""
        lane: _Lane = deque((Future(), task) for task in tasks)
        futures = [future for future, _ in lane]
        with self._wake:
            if self._closed:
                _cancel(futures)
            elif lane:
                self._start_threads(len(lane))
                self._lanes.append(lane)
            self._wake.notify_all()
        return futures

    def cancel(self, futures: Collection["Future[Any]"]) -> None:
        """Take the tasks of a ``submit`` off the queue; those that run go on."""
        wanted = set(futures)
        with self._wake:
            for lane in [lane for lane in self._lanes if lane[0][0] in wanted]:
                self._lanes.remove(lane)
                _cancel(future for future, _ in lane)

    def step_aside(self, wait: Callable[[], T]) -> T:
        """Run ``wait`` in a task that has nothing to do meanwhile, and go on when there is room for it again."""
        if current_thread() not in self._workers:
            return wait()
        with self._wake:
            self._running -= 1
            self._aside += 1
            self._start_threads()
            self._wake.notify_all()
        try:
            return wait()
        finally:
            with self._wake:
                self._aside -= 1
                while self._running >= self._limit and not self._closed:
                    self._wake.wait()
                self._running += 1

    def close(self) -> None:
        """Take no more work; threads end after what they are at."""
        with self._wake:
            self._closed = True
            _cancel(future for lane in self._lanes for future, _ in lane)
            self._lanes.clear()
            self._wake.notify_all()

    def _start_threads(self, more: int = 0) -> None:
        wanted = sum(map(len, self._lanes)) + more + self._running + self._aside
        # As many again as may run, and no more, for those who stepped aside: all tasks may end up doing so.
        most = self._limit + min(self._aside, self._limit)
        while len(self._workers) < min(most, wanted) and not self._closed:
            # A daemon: one that waits for the network must not hold the interpreter up at exit.
            worker = Thread(target=self._work, name=self._name, daemon=True)
            try:
                worker.start()
            except RuntimeError:  # the system allows no more threads: those that there are will do
                if not self._workers:
                    raise
                return
            self._workers.add(worker)

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            future, task = taken
            try:
                if future.set_running_or_notify_cancel():
                    try:
                        result = task()
                    except BaseException as error:  # noqa: BLE001  it belongs to whoever waits for the future
                        future.set_exception(error)
                    else:
                        future.set_result(result)
            finally:
                del future, task, taken  # what they refer to may be large
                with self._wake:
                    self._running -= 1
                    self._wake.notify_all()  # not all wait for the same

    def _take(self) -> tuple["Future[Any]", Callable[[], Any]] | None:
        with self._wake:
            while not self._closed and not (self._lanes and self._running < self._limit):
                self._wake.wait()
            if self._closed:
                return None
            lane = self._lanes.popleft()
            taken = lane.popleft()
            if lane:
                self._lanes.append(lane)
            self._running += 1
            return taken


def _cancel(futures: Iterable["Future[Any]"]) -> None:
    for future in futures:
        future.cancel()
        future.set_running_or_notify_cancel()  # or whoever waits for it does so for ever
