"""The facts without which a time says nothing."""

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["facts", "file_system"]

_PACKAGES = ("llm-modelstore", "click", "filelock", "urllib3", "xxhash", "huggingface-hub")


def facts(directory: str) -> dict[str, str]:
    """The machine, the file system of ``directory``, and the versions of what is measured."""
    return {
        "cpu": f"{_cpu()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "file system": file_system(directory),
        "packages": ", ".join(_packages()),
        "commit": _commit(),
    }


def file_system(directory: str) -> str:
    """The type of the file system that holds a directory, as the kernel calls it (``ext4``, ``tmpfs``)."""
    place = Path(directory).resolve()
    best, found = -1, "unknown"
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            mount = left.split()[4].replace("\\040", " ")
            # The longest counts, and of several at one place the last, which covers the others.
            if place.is_relative_to(mount) and len(mount) >= best:
                best, found = len(mount), right.split()[0]
    return found


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _packages() -> list[str]:
    found = []
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return found


def _commit() -> str:
    """The commit that is checked out, if this is a checkout; ``+`` if there is more than that."""
    try:
        command = ["git", "-C", os.path.dirname(__file__), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
