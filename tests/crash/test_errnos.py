"""A system call fails, once or from then on: one clear error and its exit code, nothing half there, the next works."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from tests.crash.inject import CALLS, MUTATING
from tests.crash.sweep import SCENARIOS, Sweep
from tests.support import ERROR

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.crash.lab import Store

#: What a call may end in: 10 no space, 9 the tier, 13 the layout; 0 where it was not needed after all.
ERRORS = {
    "ENOSPC": {0, 10},
    "EDQUOT": {0, 10},
    "EIO": {0, 9, 13},
    "EROFS": {0, 9, 13},
    "EACCES": {0, 9, 13},
    "EMFILE": {0, 9, 13},
}
SPACE = ("ENOSPC", "EDQUOT")
#: Calls that a full disk fails.
GROWING = ["write", "pwrite64", "mkdir", "openat", "linkat", "rename", "fallocate", "copy_file_range", "fsync"]
#: Of the calls that change nothing, those that can meet a broken disk or a missing right.
LOOKING = ["openat", "read", "pread64", "newfstatat", "getdents64", "statfs", "flock"]
FEW = 1


def fail(sweep: Sweep, error: str, numbers: Iterable[int], *flags: str) -> int:
    """Let each of these calls fail, until a run has none; how many there were."""
    failures = []
    count = 0
    for number in numbers:
        store, code = sweep.attack("--at", str(number), "--error", error, *flags)
        reached = sweep.log.read_text().splitlines()[number - 1 : number]
        try:
            judge(sweep, store, code, error)
        except AssertionError as problem:
            failures.append(f"{error} at call {number}, {reached}: {problem}")
        finally:
            store.remove()
        if not reached:
            break
        count += 1
    assert not failures, "\n\n".join(failures)
    return count


def judge(sweep: Sweep, store: Store, code: int, error: str) -> None:
    stderr = store.outputs[-1]
    assert code in ERRORS[error], (code, stderr)
    if code:
        lines = stderr.splitlines()
        assert store.outputs[-2] == "", "stdout is for results"
        assert [line for line in lines if line.startswith(ERROR)] == lines[-1:], "one error, at the end"
    store.kills += 1  # what is left is swept later, as after a kill
    sweep.judge(store)


@pytest.mark.parametrize("sweep", SCENARIOS, indirect=True, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("place", ["tmpfs"], indirect=True)
def test_error_at_some_calls(sweep: Sweep) -> None:
    """Other calls for each error, so that together they get about."""
    calls = sweep.few(FEW * len(ERRORS))
    for at, error in enumerate(ERRORS):
        fail(sweep, error, calls[at :: len(ERRORS)])


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("sweep", SCENARIOS, indirect=True, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("place", ["tmpfs"], indirect=True)
def test_error_at_every_call(sweep: Sweep, error: str) -> None:
    """Every call that changes something fails once."""
    assert fail(sweep, error, itertools.count(1)) >= 20


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EROFS", "EMFILE"])
@pytest.mark.parametrize("sweep", SCENARIOS, indirect=True, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("place", ["tmpfs"], indirect=True)
def test_error_from_every_call_on(sweep: Sweep, error: str) -> None:
    """The disk stays full, broken or read-only, from some moment on."""
    calls = GROWING if error == "ENOSPC" else ["openat"] if error == "EMFILE" else MUTATING
    assert fail(sweep, error, itertools.count(1), "--persist", "--calls", ",".join(calls)) >= 1


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("error", ["EIO", "EACCES", "EMFILE"])
@pytest.mark.parametrize("sweep", SCENARIOS, indirect=True, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("place", ["tmpfs"], indirect=True)
def test_error_at_every_look(sweep: Sweep, error: str) -> None:
    """Every call that reads fails once."""
    calls = ["openat"] if error == "EMFILE" else LOOKING
    assert fail(sweep, error, itertools.count(1), "--everything", "--calls", ",".join(calls)) >= 10


def test_the_calls_exist() -> None:
    assert {*GROWING, *LOOKING} <= CALLS.keys()
