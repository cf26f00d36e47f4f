"""What is shown of a fetch: sizes for people, a bar on a terminal, lines in a log."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelstore import progress
from modelstore.progress import LogProgress, ProgressUpdate, TerminalProgress, human_size

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
