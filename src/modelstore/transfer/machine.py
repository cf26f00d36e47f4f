"""How much memory and how many cores this process may use: the machine's, or what its cgroup leaves of them."""

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

__all__ = ["cores", "fits_in_memory", "memory_limit"]

_ROOT: Final = "/sys/fs/cgroup"
_PROC: Final = "/proc/self/cgroup"


def fits_in_memory(size: int, *, limit: int | None = None) -> bool:
    """Whether ``size`` bytes take at most half of the memory, so that they may stay in the page cache.

    The engine that reads the model next then finds it there; a larger one would only push out everything else.
    """
    return size <= (memory_limit() if limit is None else limit) // 2


def memory_limit(root: str = _ROOT, proc: str = _PROC) -> int:
    """Bytes of memory: the smallest limit of this process's cgroups (v1 or v2) and the machine's own size."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = [_number(text) for text in _read_up(root, proc, "memory", "memory.max", "memory.limit_in_bytes")]
    return min([machine, *(limit for limit in found if limit is not None and limit > 0)])


def cores(root: str = _ROOT, proc: str = _PROC) -> int:
    """Cores: those this process is allowed to run on, or fewer if a CPU quota of its cgroups is worth fewer."""
    allowed = len(os.sched_getaffinity(0))
    shares = [_quota(text) for text in _read_up(root, proc, "cpu", "cpu.max", "cpu.cfs_quota_us")]
    return max(1, min([allowed, *(share for share in shares if share is not None)]))


def _read_up(root: str, proc: str, controller: str, v2: str, v1: str) -> Iterator[str]:
    """A setting of each cgroup that this process is in, from its own up to the root (cgroups(7)).

    A container may see its own cgroup as the root, under a path that is the host's: then only the root is there.
    """
    with suppress(OSError, ValueError), open(proc, encoding="utf-8") as lines:
        for line in lines:
            number, controllers, path = line.rstrip("\n").split(":", 2)
            if number == "0":
                yield from _each(f"{root}", path, v2)
            elif controller in controllers.split(","):
                yield from _each(f"{root}/{controllers}", path, v1)
                if controllers != controller:
                    yield from _each(f"{root}/{controller}", path, v1)


def _each(mount: str, path: str, name: str) -> Iterator[str]:
    while True:
        folder = f"{mount}{path.rstrip('/')}"
        with suppress(OSError), open(f"{folder}/{name}", encoding="utf-8") as file:
            text = file.read().strip()
            if name == "cpu.cfs_quota_us":
                with open(f"{folder}/cpu.cfs_period_us", encoding="utf-8") as period:
                    text = f"{text} {period.read().strip()}"
            yield text
        if path in ("", "/"):
            return
        path = path.rpartition("/")[0]


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None  # "max" is no limit


def _quota(text: str) -> int | None:
    """Whole cores of "<quota> <period>" in microseconds, rounded up; None for no quota."""
    quota, _, period = text.partition(" ")
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None
    return -(-int(quota) // int(period)) or None
