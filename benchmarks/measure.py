"""Taking times: calls in this process, and commands beside each other."""

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

__all__ = ["time_calls", "time_commands"]


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
            begun = perf_counter()
            done = subprocess.run(commands[name], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            seconds = perf_counter() - begun
            if done.returncode:
                raise RuntimeError(f"{name}: exit {done.returncode}: {os.fsdecode(done.stderr)[-500:]}")
            if run >= 0:
                samples[name].append(seconds)
    return samples
