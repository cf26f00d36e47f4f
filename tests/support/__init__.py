"""What the black-box tests share: the command in a subprocess, and looks at what it left on disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

PUBLISHED = ("blobs", "manifests", "models", ".modelstore/refs")
ERROR = "modelstore: error: "


def impossible(reason: str) -> NoReturn:
    """This machine cannot run the test: skipped, but never in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def unshare(*namespaces: str, script: str = 'exec "$@"', root: Path | str = "") -> tuple[str, ...]:
    """A command prefix that gives a command mounts (or a network) of its own; `script` runs there, "$0" is `root`."""
    for privilege in ((), ("--user", "--map-root-user")):
        prefix = ("unshare", *privilege, *namespaces)
        probe = ("mount", "-t", "tmpfs", "tmpfs", "/tmp") if "--mount" in namespaces else ("true",)
        if _works(*prefix, *probe):
            return (*prefix, "sh", "-c", script, str(root))
    impossible(f"no privilege to unshare {namespaces}")


def without_privileges() -> tuple[str, ...]:
    """A command prefix that takes root's powers away; the user stays, so paths below a private home stay in reach."""
    prefix = ("setpriv", "--inh-caps=-all", "--bounding-set=-all")
    if os.geteuid() != 0:
        return ()
    return prefix if _works(*prefix, "true") else impossible("setpriv cannot drop root's capabilities")


def _works(*command: str) -> bool:
    return bool(shutil.which(command[0])) and subprocess.run(command, capture_output=True, check=False).returncode == 0


def sha256_of(path: Path | bytes) -> str:
    if isinstance(path, bytes):
        return hashlib.sha256(path).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(directory: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file below `directory`, links followed."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): sha256_of(path) for path in files}


def tree(directory: Path) -> dict[str, str]:
    """Relative path -> type and content of everything below `directory`, links not followed."""
    return {path.relative_to(directory).as_posix(): _describe(path) for path in sorted(directory.rglob("*"))}


def _describe(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"link to {path.readlink()}"
    return f"file {sha256_of(path)}" if stat.S_ISREG(mode) else f"type {stat.S_IFMT(mode):o}"


def visible(root: Path) -> dict[str, str]:
    """What a store shows: everything below its published directories, but not those directories."""
    if not root.is_dir():
        return {}
    found = {top: tree(root / top) for top in PUBLISHED if (root / top).is_dir()}
    return {f"{top}/{name}": what for top, names in found.items() for name, what in names.items()}


def staged(root: Path) -> list[str]:
    ingest = root / ".modelstore" / "ingest"
    return sorted(os.listdir(ingest)) if ingest.is_dir() else []


def stats(root: Path) -> dict[str, tuple[int, ...]]:
    """Inode, mode, size, mtime and ctime of the root and of everything below it: any write shows."""
    found: dict[str, tuple[int, ...]] = {}
    for path in (root, *root.rglob("*")):
        at = path.lstat()
        found[str(path)] = (at.st_ino, at.st_mode, at.st_size, at.st_mtime_ns, at.st_ctime_ns)
    return found


def blob(root: Path, digest: str) -> Path:
    return root / "blobs" / f"sha256-{digest.removeprefix('sha256:')}"


def key_of(url: str) -> str:
    return sha256_of(url.encode())


@contextmanager
def writable(path: Path) -> Iterator[None]:
    mode = path.stat().st_mode
    path.chmod(mode | stat.S_IWUSR)
    try:
        yield
    finally:
        path.chmod(mode)


def flip_byte(path: Path, offset: int) -> None:
    """Bit rot: one bit changes; size, mode and mtime stay."""
    before = path.stat()
    with writable(path), path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@dataclass(frozen=True)
class Result:
    """How one run of the command ended."""

    returncode: int
    stdout: str
    stderr: str

    def ok(self) -> Result:
        assert self.returncode == 0, self
        assert "Traceback" not in self.stderr, self
        return self

    @property
    def path(self) -> Path:
        """The one line of `fetch` and `path`."""
        (line,) = self.ok().stdout.splitlines()
        return Path(line)

    @property
    def json(self) -> Any:
        return json.loads(self.ok().stdout)

    def failed(self, code: int, *words: str) -> Result:
        """It ended with `code` and one clear sentence that has every one of `words`; stdout is for results."""
        assert self.returncode == code, self
        assert self.stdout == "", self
        assert "Traceback" not in self.stderr, self
        errors = [line for line in self.stderr.splitlines() if line.startswith(ERROR)]
        assert len(errors) == 1, self
        assert self.stderr.splitlines()[-1] == errors[0], self
        sentence = errors[0].removeprefix(ERROR).strip()
        assert len(sentence) > 10, self
        for word in words:
            assert word in sentence, (word, self)
        return self


@dataclass(frozen=True)
class Modelstore:
    """The installed `modelstore` command with an environment of its own; call it like a function."""

    home: Path
    options: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()  # put before the command: unshare, setpriv, …
    command: tuple[str, ...] = (str(Path(sys.executable).parent / "modelstore"),)

    def at(self, *tiers: Path | str) -> Modelstore:
        return replace(self, options=tuple(part for tier in tiers for part in ("--tier", str(tier))))

    def with_env(self, **env: str) -> Modelstore:
        return replace(self, env={**self.env, **env})

    def with_prefix(self, *prefix: str) -> Modelstore:
        return replace(self, prefix=prefix)

    def __call__(self, *args: Path | str, timeout: float = 60, **popen: Any) -> Result:
        done = subprocess.run(**self._popen(args, popen), capture_output=True, timeout=timeout, check=False)
        return Result(done.returncode, done.stdout, done.stderr)

    def start(self, *args: Path | str, **popen: Any) -> subprocess.Popen[str]:
        """The same, not waited for. Use the `start` fixture, which ends what a test leaves running."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(**self._popen(args, {**pipes, **popen}))

    def _popen(self, args: Iterable[Path | str], popen: Mapping[str, Any]) -> dict[str, Any]:
        line = [*self.prefix, *self.command, *self.options, *map(str, args)]
        return {"args": line, "env": self._environment(), "stdin": subprocess.DEVNULL, "text": True, **popen}

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG", "TMPDIR") if name in os.environ}
        home = {
            "HOME": str(self.home),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
        }
        return {**kept, **home, **self.env}


# The command, which leaves a mark whenever it asks for a file lock; LIE=1: and is then given it, whoever has it.
MARKED = """
import fcntl, os, pathlib, runpy, sys
real = fcntl.flock
def flock(*args):
    pathlib.Path(os.environ["MARKS"], str(os.getpid())).touch()
    return None if os.environ["LIE"] == "1" else real(*args)
fcntl.flock = flock
sys.argv[0] = "modelstore"
runpy.run_module("modelstore", run_name="__main__")
"""


def count(directory: Path) -> int:
    return len(os.listdir(directory))


def marked(command: Modelstore, marks: Path, *, lie: bool = False) -> Modelstore:
    """`command`, showing in `marks` (one file per process) that it came to a lock."""
    marks.mkdir(exist_ok=True)
    program = replace(command, command=(sys.executable, "-c", MARKED))
    return program.with_env(MARKS=str(marks), LIE=str(int(lie)))


def wait_until(condition: Callable[[], bool], *processes: subprocess.Popen[str], timeout: float = 30) -> None:
    """Until `condition` holds; at once an error, with its output, if one of `processes` ends before."""
    deadline = time.monotonic() + timeout
    while not condition():
        ended = [finish(process) for process in processes if process.poll() is not None]
        assert condition() or not ended, ended
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def finish(process: subprocess.Popen[str], timeout: float = 60) -> Result:
    stdout, stderr = process.communicate(timeout=timeout)
    return Result(process.returncode, stdout, stderr)
