"""The worker pool: files take turns, the number of threads follows, and nothing is left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, wait

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelstore.transfer.lanes import Lanes

WAIT = 30  # seconds: for what must happen; nothing depends on how long it takes


@pytest.fixture(autouse=True)
def ended_threads() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(WAIT)
    assert set(threading.enumerate()) <= before


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    made = Lanes(1)
    yield made
    made.close()


class Gate:
    """A task that says that it runs, and ends when it is let."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self._lock = threading.Lock()
        self.inside = self.most = 0

    def __call__(self) -> None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.entered.release()
        assert self.open.wait(WAIT)
        with self._lock:
            self.inside -= 1

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self.entered.acquire(timeout=WAIT)


def threads() -> int:
    return sum(thread.name == "modelstore-range" for thread in threading.enumerate())


def test_lanes_take_turns(lanes: Lanes) -> None:
    gate, order = Gate(), []
    lanes.submit([gate])
    gate.wait_for(1)

    def task(name: str) -> Callable[[], None]:
        return lambda: order.append(name)

    futures = [
        future
        for lane in ("a1 a2 a3 a4", "b1 b2", "c1")
        for future in lanes.submit([task(name) for name in lane.split()])
    ]
    gate.open.set()
    wait(futures)
    assert order == "a1 b1 c1 a2 b2 a3 a4".split()


def test_a_late_lane_has_its_turn(lanes: Lanes) -> None:
    """A small file that comes late does not wait for all of a large one."""
    gate, order = Gate(), []
    first = lanes.submit([gate, *(lambda number=number: order.append(number) for number in range(100))])  # type: ignore[misc]
    gate.wait_for(1)
    late = lanes.submit([lambda: order.append(-1)])
    gate.open.set()
    wait([*first, *late])
    assert order.index(-1) <= 1


def test_no_more_run_at_once_than_the_limit() -> None:
    lanes, gate = Lanes(3), Gate()
    assert not lanes.busy
    futures = lanes.submit([gate] * 10)
    gate.wait_for(3)
    assert (threads(), lanes.busy, lanes.limit) == (3, True, 3)
    gate.open.set()
    wait(futures)
    assert gate.most == 3
    lanes.close()


def test_the_limit_goes_up_while_tasks_run(lanes: Lanes) -> None:
    gate = Gate()
    futures = lanes.submit([gate] * 4)
    gate.wait_for(1)
    assert not gate.entered.acquire(blocking=False)
    lanes.limit = 4
    gate.wait_for(3)
    assert (lanes.limit, lanes.busy) == (4, False)
    gate.open.set()
    wait(futures)


def test_the_limit_goes_down_while_tasks_run(lanes: Lanes) -> None:
    lanes.limit = 4
    gate, later = Gate(), Gate()
    first = lanes.submit([gate] * 4)
    gate.wait_for(4)
    lanes.limit = 2
    assert lanes.limit == 2
    later.open.set()
    more = lanes.submit([later] * 20)
    gate.open.set()
    wait([*first, *more])
    assert later.most <= 2
    assert threads() == 4  # they are there, and wait


def test_no_thread_without_work() -> None:
    lanes, gate = Lanes(8), Gate()
    assert lanes.submit([]) == []
    lanes.limit = 16
    assert (threads(), lanes.busy) == (0, False)
    futures = lanes.submit([gate] * 2)
    gate.wait_for(2)
    assert threads() == 2
    gate.open.set()
    wait(futures)
    futures = lanes.submit([lambda: None] * 3)
    wait(futures)
    assert threads() <= 5
    lanes.close()


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt("x"), SystemExit(3)])
def test_a_failure_belongs_to_its_future(lanes: Lanes, error: BaseException) -> None:
    def fail() -> None:
        raise error

    failed, good = lanes.submit([fail]), lanes.submit([lambda: 7])
    assert failed[0].exception(WAIT) is error
    assert good[0].result(WAIT) == 7  # the thread goes on


def test_a_cancelled_task_is_not_run(lanes: Lanes) -> None:
    gate, ran = Gate(), []
    lanes.submit([gate])
    gate.wait_for(1)
    futures = lanes.submit([lambda number=number: ran.append(number) for number in range(5)])  # type: ignore[misc]
    assert futures[1].cancel()
    assert futures[3].cancel()
    gate.open.set()
    wait(futures)
    assert ran == [0, 2, 4]


def test_a_task_that_runs_cannot_be_cancelled(lanes: Lanes) -> None:
    gate = Gate()
    (future,) = lanes.submit([gate])
    gate.wait_for(1)
    assert not future.cancel()
    gate.open.set()
    assert future.result(WAIT) is None


def test_close_cancels_what_waits_and_lets_the_rest_end(lanes: Lanes) -> None:
    gate = Gate()
    running, *queued = lanes.submit([gate] * 5)
    gate.wait_for(1)
    others = lanes.submit([gate] * 5)
    lanes.close()
    lanes.close()
    for future in (*queued, *others):
        with pytest.raises(CancelledError):
            future.result(0)
    gate.open.set()
    assert running.result(WAIT) is None
    assert gate.most == 1


def test_nobody_waits_for_what_close_cancelled(lanes: Lanes) -> None:
    """``wait`` takes a future for done only when it was told that it will not run: else it waits for ever."""
    gate = Gate()
    gate.open.set()
    hold = Gate()
    lanes.submit([hold])
    hold.wait_for(1)
    queued = lanes.submit([gate] * 5)
    assert queued[0].cancel()
    lanes.close()
    hold.open.set()
    assert wait(queued, timeout=0).not_done == set()


def test_what_comes_after_close_is_cancelled(lanes: Lanes) -> None:
    lanes.close()
    futures = lanes.submit([lambda: pytest.fail("it was run")] * 2)
    assert wait(futures, timeout=0).not_done == set()
    assert all(future.cancelled() for future in futures)
    assert threads() == 0


# -- stepping aside ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 8])
def test_who_steps_aside_makes_room(limit: int) -> None:
    """A server that asks for two minutes' patience must not keep the other files from theirs."""
    lanes, aside, over = Lanes(limit), threading.Event(), threading.Event()

    def patient() -> None:
        def wait_here() -> None:
            aside.set()
            over.wait(WAIT)

        lanes.step_aside(wait_here)

    first = lanes.submit([patient])
    assert aside.wait(WAIT)
    before = threads()
    other = lanes.submit([lambda: None])
    started = threads() > before
    over.set()
    wait([*first, *other])
    lanes.close()
    assert started


def test_no_more_run_at_once_when_those_who_stepped_aside_come_back() -> None:
    lanes, gate, over = Lanes(4), Gate(), threading.Event()

    def patient() -> None:
        lanes.step_aside(lambda: over.wait(WAIT))
        gate()

    futures = lanes.submit([patient, patient, gate, gate, gate, gate])
    gate.wait_for(4)
    over.set()
    gate.open.set()
    wait(futures)
    lanes.close()
    assert gate.most <= 4


def test_close_ends_the_wait_for_room() -> None:
    lanes, gate, over = Lanes(2), Gate(), threading.Event()

    def patient() -> bool:
        return lanes.step_aside(lambda: over.wait(WAIT))

    future, running = lanes.submit([patient, gate])
    gate.wait_for(1)
    lanes.limit = 1
    over.set()
    lanes.close()
    assert future.result(WAIT) is True
    gate.open.set()
    wait([running])


def test_one_that_is_no_worker_just_waits(lanes: Lanes) -> None:
    assert lanes.step_aside(lambda: 7) == 7
    assert not lanes.busy


def test_close_without_work() -> None:
    lanes = Lanes(4)
    lanes.close()
    lanes.limit = 8
    assert threads() == 0


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(0, 20), max_size=8),
    limits=st.lists(st.integers(1, 12), min_size=1, max_size=8),
)
def test_every_task_is_run_once(lengths: list[int], limits: list[int]) -> None:
    lanes, lock, ran = Lanes(limits[0]), threading.Lock(), []

    def task(number: int) -> int:
        with lock:
            ran.append(number)
        return number

    futures = []
    for lane, length in enumerate(lengths):
        numbers = range(100 * lane, 100 * lane + length)
        futures += lanes.submit([lambda number=number: task(number) for number in numbers])  # type: ignore[misc]
        lanes.limit = limits[lane % len(limits)]
    results = [future.result(WAIT) for future in futures]
    lanes.close()
    assert results == [100 * lane + number for lane, length in enumerate(lengths) for number in range(length)]
    assert sorted(ran) == sorted(results)
