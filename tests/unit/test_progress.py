"""What is shown of a fetch: sizes for people, a bar on a terminal, lines in a log."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelstore import progress
from modelstore.progress import LogProgress, ProgressUpdate, TerminalProgress, human_size, human_time

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * MIB, "1.5 GiB"),
        (1024 * 1024 * MIB, "1.0 TiB"),
        (5000 * 1024 * 1024 * MIB, "5000.0 TiB"),
    ],
)
def test_human_size(size: int, text: str) -> None:
    assert human_size(size) == text


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`clock(seconds)` sets the time."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def set_to(seconds: float) -> None:
        now[0] = 100.0 + seconds

    return set_to


def update(done_bytes: int, *, total: int = 4 * MIB, done: bool = False) -> ProgressUpdate:
    return ProgressUpdate(done_bytes, total, 1 if done else 0, 1, done)


def test_a_log_has_a_line_every_ten_seconds_and_one_at_the_end(clock: Callable[[float], None]) -> None:
    lines: list[str] = []
    log = LogProgress(lines.append)
    for second in range(25):
        clock(second)
        log(update(second * 1024))
    assert len(lines) == 2
    log(update(4 * MIB, done=True))
    log.close()
    assert len(lines) == 3
    assert lines[-1] == "4.0 MiB of 4.0 MiB (100%), 1/1 files, 170.7 KiB/s"


def test_lines_are_json_on_request(clock: Callable[[float], None]) -> None:
    lines: list[str] = []
    log = LogProgress(lines.append, as_json=True)
    clock(12.3456)
    log(update(MIB))
    assert json.loads(lines[0]) == {
        "event": "progress",
        "bytes_done": MIB,
        "bytes_total": 4 * MIB,
        "files_done": 0,
        "files_total": 1,
        "bytes_resumed": 0,
        "bytes_per_second": round(MIB / 12.3456),
        "eta_seconds": round(3 * 12.3456, 3),
        "seconds": 12.346,
    }
    assert "\n" not in lines[0]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**13), st.integers(0, 10**13))))
def test_no_count_breaks_a_log(counts: list[tuple[int, int]]) -> None:
    for as_json in (False, True):
        lines: list[str] = []
        log = LogProgress(lines.append, as_json=as_json, interval=0.0)
        for done, total in counts:
            log(update(done, total=total))
        assert len(lines) == len(counts)


def test_an_empty_model_is_complete(clock: Callable[[float], None]) -> None:
    lines: list[str] = []
    LogProgress(lines.append)(update(0, total=0, done=True))
    assert lines == ["0 B of 0 B (100%), 1/1 files, 0 B/s"]


def test_the_bar_follows_the_bytes_back_and_forth() -> None:
    stream = io.StringIO()
    bar = TerminalProgress("a model", stream)
    assert stream.getvalue() == ""  # nothing is drawn for a warm hit
    for done in (0, 3 * MIB, MIB):
        bar(update(done))
    assert bar._bar.n == MIB
    assert "a model" in stream.getvalue()
    bar(update(4 * MIB, done=True))
    bar.close()
    assert bar._bar is None


# -- how fast, and how long -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"), (0.4, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (123, "2:03"), (3599.6, "1:00:00"),
        (3723, "1:02:03"), (360000, "100:00:00"),
    ],
)  # fmt: skip
def test_human_time(seconds: float, text: str) -> None:
    assert human_time(seconds) == text


def test_what_was_resumed_is_no_speed() -> None:
    resumed = ProgressUpdate(3 * MIB, 4 * MIB, 0, 1, bytes_resumed=2 * MIB)
    assert resumed.rate(2.0) == MIB / 2
    assert resumed.eta(2.0) == 2.0
    nothing_new = ProgressUpdate(2 * MIB, 4 * MIB, 0, 1, bytes_resumed=2 * MIB)
    assert (nothing_new.rate(2.0), nothing_new.eta(2.0)) == (0.0, None)


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_without_time_there_is_no_speed(seconds: float) -> None:
    assert (update(MIB).rate(seconds), update(MIB).eta(seconds)) == (0.0, None)


def test_at_the_end_nothing_is_left() -> None:
    assert update(4 * MIB, done=True).eta(3.0) == 0.0


@settings(deadline=None)
@given(
    total=st.integers(0, 10**15),
    done=st.floats(0, 1),
    resumed=st.floats(0, 1),
    seconds=st.floats(1e-6, 1e7),
)
def test_the_rest_takes_what_the_rate_says(total: int, done: float, resumed: float, seconds: float) -> None:
    bytes_done = int(total * done)
    made = ProgressUpdate(bytes_done, total, 0, 1, bytes_resumed=int(bytes_done * resumed))
    rate, eta = made.rate(seconds), made.eta(seconds)
    assert rate >= 0
    assert (eta is None) == (rate == 0)
    if eta is not None:
        assert eta * rate == pytest.approx(total - bytes_done, abs=1)
        assert human_time(eta)


def test_a_log_says_how_long_it_will_take(clock: Callable[[float], None]) -> None:
    lines: list[str] = []
    log = LogProgress(lines.append)
    clock(10)
    log(ProgressUpdate(3 * MIB, 4 * MIB, 0, 1, bytes_resumed=2 * MIB))
    assert lines == ["3.0 MiB of 4.0 MiB (75%), 0/1 files, 102.4 KiB/s, 0:10 left"]
    clock(20)
    log(ProgressUpdate(3 * MIB, 4 * MIB, 0, 1, bytes_resumed=3 * MIB))
    assert lines[1] == "3.0 MiB of 4.0 MiB (75%), 0/1 files, 0 B/s"


def test_json_says_what_was_resumed(clock: Callable[[float], None]) -> None:
    lines: list[str] = []
    log = LogProgress(lines.append, as_json=True)
    clock(10)
    log(ProgressUpdate(MIB, 4 * MIB, 0, 1, bytes_resumed=MIB))
    found = json.loads(lines[0])
    assert (found["bytes_resumed"], found["bytes_per_second"], found["eta_seconds"]) == (MIB, 0, None)


def test_the_bar_takes_what_was_resumed_for_where_it_began() -> None:
    bar = TerminalProgress("a model", io.StringIO())
    bar(ProgressUpdate(2 * MIB, 4 * MIB, 0, 1, bytes_resumed=2 * MIB))
    assert (bar._bar.n, bar._bar.initial) == (2 * MIB, 2 * MIB)
    assert bar._bar.format_dict["initial"] == 2 * MIB
    bar.close()
