"""How many connections: as many as make it faster, fewer where that hurts, and never none."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelstore.transfer import limits
from modelstore.transfer.pace import Pace

MOST = limits.MOST_CONNECTIONS
PATIENCE, RESPECT = 20, 40  # periods that it stays as it is: after a try in vain, and after the server asked for less


CLOCK = [1000.0]  # seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: CLOCK[0])


@dataclass
class FakeLanes:
    limit: int = limits.FIRST_CONNECTIONS
    busy: bool = True


class Network:
    """Gives so many bytes a second for so many connections, on a clock of its own."""

    def __init__(self, rate: Callable[[int], float], lanes: FakeLanes | None = None, *, most: int = MOST) -> None:
        self.lanes = lanes or FakeLanes()
        self.pace = Pace(self.lanes, most)  # type: ignore[arg-type]
        self.rate = rate
        self.now, self.total = CLOCK[0], 0.0
        self.pace.tick(self.now, 0)

    def tick(self, seconds: float) -> None:
        self.now += seconds
        CLOCK[0] = self.now

    def slow_down(self, ago: float = 0.0) -> None:
        """The server asks for less, in answer to a request of so many seconds ago."""
        self.pace.slow_down(self.now - ago)

    def run(self, periods: int) -> list[int]:
        """The limit after each period."""
        seen = []
        for _ in range(periods):
            self.tick(limits.PACE_SECONDS)
            self.total += self.rate(self.lanes.limit) * limits.PACE_SECONDS
            self.pace.tick(self.now, int(self.total))
            seen.append(self.lanes.limit)
        return seen


def up_to(connections: int) -> Callable[[int], float]:
    """A network that is full with so many."""
    return lambda limit: 1e6 * min(limit, connections)


def test_it_doubles_while_that_helps() -> None:
    assert Network(up_to(1000)).run(10) == [16, 32, *[MOST] * 8]


def test_from_one_up_to_the_most() -> None:
    seen = Network(up_to(1000), FakeLanes(1)).run(20)
    assert seen == [2, 4, 8, 16, 32, *[MOST] * 15]


def test_the_most_is_a_bound_even_if_it_is_no_power_of_two() -> None:
    assert max(Network(up_to(1000), FakeLanes(MOST - 1)).run(10)) == MOST


def test_it_goes_back_when_more_did_not_help() -> None:
    assert Network(up_to(8)).run(10) == [16, *[8] * 9]
    assert Network(up_to(16)).run(10) == [16, 32, *[16] * 8]


def test_it_goes_back_when_more_hurts() -> None:
    """A disk that seeks, a server that shares less with who takes more."""
    seen = Network(lambda limit: 1e6 * (20 - limit)).run(10)
    assert seen == [16, *[8] * 9]


@pytest.mark.parametrize(("gain", "stays"), [(1.09, False), (1.11, True)])
def test_a_tenth_is_what_counts(gain: float, stays: bool) -> None:
    network = Network(lambda limit: 1e6 if limit <= 8 else 1e6 * gain)
    assert (network.run(2)[-1] >= 16) is stays


def test_it_tries_again_after_a_while() -> None:
    network = Network(up_to(8))
    assert network.run(2) == [16, 8]
    assert network.run(PATIENCE) == [8] * PATIENCE
    network.rate = up_to(1000)  # others are gone
    assert network.run(4)[-1] > 16


def test_a_burst_is_halved_once() -> None:
    """Every connection hears of the same overload."""
    network = Network(up_to(1000))
    network.run(5)
    network.slow_down()
    for number in range(1, MOST):
        network.slow_down(ago=number / 10)
    assert network.lanes.limit == MOST // 2
    assert network.run(RESPECT - 5) == [MOST // 2] * (RESPECT - 5)
    assert network.run(10)[-1] > MOST // 2  # not for ever


def test_an_overload_that_lasts_goes_on_halving_down_to_one() -> None:
    network = Network(up_to(1000))
    seen = []
    for _ in range(12):
        network.slow_down()
        seen.append(network.lanes.limit)
        network.run(3)
    assert seen[:4] == [4, 2, 1, 1]
    assert min(seen) == 1


def test_what_was_tried_is_forgotten_when_the_server_is_overloaded() -> None:
    """The limit from before the try would be an increase."""
    network = Network(up_to(1000))
    network.run(2)
    network.slow_down()
    network.rate = up_to(1)  # slower than before, as is to be expected
    assert set(network.run(20)) == {16}


def test_it_stays_as_it_is_without_more_work() -> None:
    lanes = FakeLanes(busy=False)
    assert Network(up_to(1000), lanes).run(10) == [limits.FIRST_CONNECTIONS] * 10


def test_it_stays_as_it_is_while_nothing_comes() -> None:
    network = Network(lambda _: 0.0)
    assert network.run(50) == [limits.FIRST_CONNECTIONS] * 50
    network.rate = up_to(1000)
    assert network.run(1) == [16]


def test_it_is_judged_once_in_a_period() -> None:
    network = Network(up_to(1000))
    for step in range(1, 10):
        network.pace.tick(network.now + step * limits.PACE_SECONDS / 10, 10**9 * step)
    assert network.lanes.limit == limits.FIRST_CONNECTIONS


@pytest.mark.parametrize("most", [1, 3, 256])
def test_a_number_that_was_named_is_the_most(most: int) -> None:
    """It is lowered while the server is overloaded, and then comes back."""
    network = Network(up_to(1000), FakeLanes(most), most=most)
    assert network.run(10) == [most] * 10
    network.slow_down()
    assert network.lanes.limit == max(1, most // 2)
    assert max(network.run(RESPECT + 10)) == most


@settings(deadline=None)
@given(
    start=st.integers(1, MOST),
    steps=st.lists(
        st.one_of(
            st.floats(0, 5), st.tuples(st.floats(0, 2), st.integers(-(10**9), 10**10), st.booleans())
        ),
        max_size=80,
    ),
)  # fmt: skip
def test_whatever_happens_it_stays_within_bounds(start: int, steps: list[float | tuple[float, int, bool]]) -> None:
    """Even when bytes are taken back, because what was resumed is no good."""
    network = Network(up_to(1000), FakeLanes(start))
    for step in steps:
        before = network.lanes.limit
        if isinstance(step, float):
            network.slow_down(step)
            assert network.lanes.limit in (before, max(1, before // 2))
        else:
            network.tick(step[0])
            network.total += step[1]
            network.lanes.busy = step[2]
            network.pace.tick(network.now, int(network.total))
        assert 1 <= network.lanes.limit <= MOST
        assert network.lanes.limit <= 2 * before
