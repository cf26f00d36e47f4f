"""The command, killed at a named step: production code knows nothing of it.

    python driver.py STEP before|after K ROOT ARGUMENTS…

Steps are calls of `os` functions on files with certain names below ROOT, seen in whatever thread makes them. At the
K-th call of the step the process ends with SIGKILL, before the call is made or right after it.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

INGEST = r"\.modelstore/ingest/[^/]*"
BUILT = r"models/\.[^/]*\.modelstore"
#: name: functions of `os`, and the name of the file they are called for (the last one, if it is called for two).
STEPS = {
    "format.json published": (("rename", "replace"), r"\.modelstore/format\.json"),
    "staged file opened": (("open",), rf"{INGEST}\.staged"),
    "piece written": (("pwrite",), rf"{INGEST}\.staged"),
    "staged file synced": (("fsync",), rf"{INGEST}\.staged"),
    "staged file made read-only": (("fchmod",), rf"{INGEST}\.staged"),
    "staged file taken over": (("rename",), rf"{INGEST}\.staged"),
    "journal opened": (("open",), rf"{INGEST}\.journal"),
    "journal written": (("write", "pwrite", "writev"), rf"{INGEST}\.journal"),
    "journal removed": (("unlink",), rf"{INGEST}\.journal"),
    "blob published": (("rename", "link", "replace"), r"blobs/.*"),
    "blobs synced": (("fsync",), r"blobs"),
    "sums published": (("rename", "replace"), r"\.modelstore/sums/.*"),
    "ref published": (("rename", "replace"), r"\.modelstore/refs/.*"),
    "refs synced": (("fsync",), r"\.modelstore/refs"),
    "tree begun": (("mkdir",), BUILT),
    "tree filled": (("link",), rf"{BUILT}/.*"),
    "tree synced": (("fsync",), BUILT),
    "tree published": (("rename", "exchange"), r"models/[0-9a-f]{16}"),
    "models synced": (("fsync",), r"models"),
    "old tree emptied": (("unlink",), rf"{BUILT}/.*|model\.bin|config\.json"),
    "layout recorded": (("rename", "replace"), r"\.modelstore/layouts/.*"),
}


@dataclass
class Step:
    name: str
    after: bool
    left: int
    root: str

    def __post_init__(self) -> None:
        self._functions, self._pattern = STEPS[self.name][0], re.compile(STEPS[self.name][1])
        self._guard = threading.Lock()

    def arm(self) -> None:
        import modelstore.transfer.tree as exchanging

        for name in self._functions:
            if name == "exchange":  # by ctypes, so there is no function of os
                exchanging.exchange = self._wrapped(exchanging.exchange)
            else:
                setattr(os, name, self._wrapped(getattr(os, name)))

    def _wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def function(*args: Any, **kwargs: Any) -> Any:
            now = self._is_it(real, args) and self._counts_down()
            if now and not self.after:
                _die()
            result = real(*args, **kwargs)
            if now:
                _die()
            return result

        return function

    def _counts_down(self) -> bool:
        with self._guard:
            self.left -= 1
            return self.left == 0

    def _is_it(self, real: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        if real is os_open and not args[1] & os.O_CREAT:
            return False
        named = [arg for arg in args[:2] if isinstance(arg, (str, os.PathLike))]
        path = os.fspath(named[-1]) if named else _path(args[0])
        return path.startswith(f"{self.root}/") and bool(self._pattern.fullmatch(path[len(self.root) + 1 :]))


os_open = os.open


def _path(descriptor: Any) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()


def main() -> None:
    name, when, count, root, *arguments = sys.argv[1:]
    Step(name, when == "after", int(count), root).arm()
    sys.argv = ["modelstore", *arguments]
    from modelstore.cli import main as command

    command()


if __name__ == "__main__":
    main()
