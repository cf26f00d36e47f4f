"""Taking times: calls in this process, and commands beside each other."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Timer
from time import perf_counter

__all__ = ["Usage", "run_command", "time_calls", "time_commands"]


@dataclass(frozen=True)
class Usage:
    """What one command took, with its children: seconds, seconds of CPU, bytes of the largest of its processes at its
    peak (not less than this one's own, from which they were started), and bytes that it made the disk write."""

    seconds: float
    cpu: float
    rss: int
    written: int


def time_calls(
    call: Callable[[], object], runs: int, *, warm_up: int = 10, after: Callable[[], object] | None = None
) -> list[float]:
    """Seconds of each call, after some that do not count. ``after`` tidies up behind each, outside the time."""
    samples = []
    for run in range(-warm_up, runs):
        begun = perf_counter()
        call()
        seconds = perf_counter() - begun
        if after is not None:
            after()
        if run >= 0:
            samples.append(seconds)
    return samples


def time_commands(
    commands: Mapping[str, Sequence[str]], rounds: int, environ: Mapping[str, str], *, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of each command from start to exit, by name. All run in each round, in an order that alternates.

    Side by side, because a machine is not as fast now as it was a minute ago. A command that fails is an error.
    """
    samples: dict[str, list[float]] = {name: [] for name in commands}
    for run in range(-warm_up, rounds):
        for name in list(commands) if run % 2 else reversed(list(commands)):
            usage = run_command(name, commands[name], environ)
            if run >= 0:
                samples[name].append(usage.seconds)
    return samples


def run_command(name: str, command: Sequence[str], environ: Mapping[str, str], limit: float = 1200) -> Usage:
    """Run a command to its end. One that fails, or takes longer than ``limit`` seconds, is an error."""
    with tempfile.TemporaryFile() as said:
        begun = perf_counter()
        process = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        )
        watchdog = Timer(limit, _kill, [process.pid])
        watchdog.daemon = True
        watchdog.start()
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            _kill(process.pid)
            process.wait()
            raise
        finally:
            watchdog.cancel()
        seconds = perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{name}: exit {process.returncode}: {os.fsdecode(said.read())[-800:]}")
    return Usage(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, used.ru_oublock * 512)


def _kill(group: int) -> None:
    os.killpg(group, signal.SIGKILL)
