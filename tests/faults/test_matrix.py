"""The fault matrix: every fault at every phase where it makes sense, with ranges in parallel and in one stream.

The default run takes one cell of every fault, so that every phase and both modes come up; `-m slow` takes all others.
A bit flip where no digest is known cannot be detected: see test_integrity.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.catalogue import FAULTS, Fault, Mode, Phase
from tests.faults.harness import Cell, run
from tests.faults.server import FaultServer

#: In the default run: each takes a second process, so only these forms go on where a fetch was killed.
RESUMED = ("01-cut", "08-moved", "11-502")
#: Forms that say little which another form of the same fault does not: none of their cells is in the default run.
ONLY_SLOW = frozenset(
    """01-cut-thrice 02-reset-always 03-range-ignored-once 04-content-range-beyond 04-content-range-nonsense
    04-content-range-before 04-content-range-after-once 07-length-absent-chunked 07-length-list 07-length-nonsense
    08-etag-flaps-unconditional 09-no-validator 10-retry-after-past 10-retry-after-negative 11-502 11-504 11-408
    12-403-always 17-dripping-head-always 19-said-to-be-encoded
    21-redirect-to-ftp 21-redirect-nowhere 22-head-lies 23-gone 24-416-once 25-continue-first
    25-garbage-always""".split()
)
#: Over TLS by default, and all of `TLS_PHASES` when slow.
TLS_DEFAULT = ("01-cut", "02-reset", "14-stall", "17-silence")
TLS_PHASES: tuple[Phase, ...] = ("first", "mid")


def _cells() -> list[Any]:
    return [
        pytest.param(fault, phase, mode, id=f"{fault.id}-{phase}-{mode}", marks=_marks(number, fault, phase, mode))
        for number, fault in enumerate(FAULTS)
        for phase in fault.phases
        for mode in fault.modes
    ]


def _marks(number: int, fault: Fault, phase: Phase, mode: Mode) -> list[pytest.MarkDecorator]:
    phases = [phase for phase in fault.phases if phase != "resume"]
    chosen = (phases[number % len(phases)], fault.modes[number // 2 % len(fault.modes)])
    default = ((phase, mode) == chosen and fault.id not in ONLY_SLOW) or (
        phase == "resume" and mode == "ranges" and fault.id in RESUMED
    )
    return [] if default else [pytest.mark.slow]


def _tls_cells() -> list[Any]:
    cells = [(fault, phase) for fault in FAULTS for phase in TLS_PHASES if phase in fault.phases]
    return [pytest.param(*cell, id=f"{cell[0].id}-{cell[1]}", marks=_tls_marks(*cell)) for cell in cells]


def _tls_marks(fault: Fault, phase: Phase) -> list[pytest.MarkDecorator]:
    return [] if fault.id in TLS_DEFAULT and phase == "mid" else [pytest.mark.slow]


@pytest.fixture
def limited(request: pytest.FixtureRequest, short_limits: pytest.MonkeyPatch) -> None:
    """The limits of the fault itself."""
    from modelstore.transfer import limits

    for name, value in request.getfixturevalue("fault").limits.items():
        short_limits.setattr(limits, name, value)


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize(("fault", "phase", "mode"), _cells())
def test_cell(server: FaultServer, root: Path, fault: Fault, phase: Phase, mode: Mode) -> None:
    run(Cell(server, root, fault, phase, mode))


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize(("fault", "phase"), _tls_cells())
def test_tls_cell(tls_server: FaultServer, root: Path, fault: Fault, phase: Phase) -> None:
    run(Cell(tls_server, root, fault, phase, "ranges"))
