"""Killed before its N-th change to the disk, for every N: what is visible is right, and the next fetch works.

The default run takes some of the calls, spread over the kinds of calls there are; `-m slow` takes all, until a run
survives.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from tests.crash.sweep import SCENARIOS, Sweep

if TYPE_CHECKING:
    from collections.abc import Iterable

FEW = 5


def kill(sweep: Sweep, numbers: Iterable[int]) -> int:
    """Kill at each of these calls, until a run survives; how many there were."""
    failures = []
    count = 0
    for number in numbers:
        try:
            if not sweep.kill_at(number):
                break
        except AssertionError as error:
            last = sweep.log.read_text().splitlines()[-1:]
            failures.append(f"killed before call {number}, {last}: {error}")
        count += 1
    assert not failures, "\n\n".join(failures)
    return count


@pytest.mark.parametrize("sweep", SCENARIOS, indirect=True, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("place", ["tmpfs"], indirect=True)
def test_kill_at_some_calls(sweep: Sweep) -> None:
    assert kill(sweep, sweep.few(FEW)) >= FEW - 1, "that many calls are made every time"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("sweep", SCENARIOS, indirect=True, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("place", ["tmpfs", "ext4"], indirect=True)
def test_kill_at_every_call(sweep: Sweep) -> None:
    count = kill(sweep, itertools.count(1))
    print(f"killed at each of {count} calls")
    assert count >= 20
