"""Run a command; at its N-th system call on files below a directory kill it, or let the call fail.

    python inject.py --below DIR [--calls write,…] [--at N] [--error ENOSPC] [--persist] --log FILE COMMAND…

Does what `strace -e inject=` does, but counts over all threads together, and only calls on paths below DIR: strace
counts per thread and cannot filter by a folder. The log gets a line for each call that counted: its name and its path.
A program of its own (ptrace(2) needs that), standard library only; Linux on x86-64.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import platform
import signal
import sys
from typing import NoReturn

# name: (number on x86-64, its arguments that name a file: an "f"ile descriptor, a "p"ath, a path "a"t a directory's).
CALLS = {
    "read": (0, "f"), "write": (1, "f"), "close": (3, "f"), "ioctl": (16, "f"), "pread64": (17, "f"),
    "pwrite64": (18, "f"), "readv": (19, "f"), "writev": (20, "f"), "sendfile": (40, "f"), "flock": (73, "f"),
    "fsync": (74, "f"), "fdatasync": (75, "f"), "truncate": (76, "p"), "ftruncate": (77, "f"), "rename": (82, "pp"),
    "mkdir": (83, "p"), "rmdir": (84, "p"), "link": (86, "pp"), "unlink": (87, "p"), "symlink": (88, "-p"),
    "chmod": (90, "p"), "fchmod": (91, "f"), "statfs": (137, "p"), "fstatfs": (138, "f"), "getdents64": (217, "f"),
    "openat": (257, "a"), "mkdirat": (258, "a"), "newfstatat": (262, "a"), "unlinkat": (263, "a"),
    "renameat": (264, "aa"), "linkat": (265, "aa"), "symlinkat": (266, "-a"), "fchmodat": (268, "a"),
    "faccessat": (269, "a"), "sync_file_range": (277, "f"), "utimensat": (280, "a"), "fallocate": (285, "f"),
    "pwritev": (296, "f"), "renameat2": (316, "aa"), "copy_file_range": (326, "f-f"), "statx": (332, "a"),
    "faccessat2": (439, "a"), "fchmodat2": (452, "a"),
}  # fmt: skip
READING = {"read", "close", "pread64", "readv", "statfs", "fstatfs", "getdents64", "newfstatat", "statx", "faccessat",
           "faccessat2", "flock"}  # fmt: skip
MUTATING = sorted(CALLS.keys() - READING)  # of openat only what makes or empties a file, of ioctl only reflinks
O_WRITES = os.O_CREAT | os.O_TRUNC
FICLONE = 0x40049409

TRACEME, GETREGS, SETREGS, CONT, SETOPTIONS = 0, 12, 13, 7, 0x4200
EVENTS_FORK, EVENT_SECCOMP, EXITKILL = 0x0E, 7, 1 << 20  # fork, vfork, clone; a stop by the filter
ORIG_RAX, RAX, REGISTERS = 15, 10, 27
ARGUMENTS = (14, 13, 12, 7, 9, 8)  # rdi rsi rdx r10 r8 r9 in user_regs_struct
WALL = 0x40000000
KILLED = 137

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
libc.ptrace.restype = ctypes.c_long
Registers = ctypes.c_ulonglong * REGISTERS


def ptrace(request: int, pid: int, address: int = 0, data: object = None) -> None:
    if libc.ptrace(request, pid, address, data) == -1 and ctypes.get_errno() != errno.ESRCH:  # gone: killed meanwhile
        raise OSError(ctypes.get_errno(), f"ptrace {request}")


class _Filter(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("value", ctypes.c_uint32),
    )  # fmt: skip


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filters", ctypes.POINTER(_Filter)))


def stop_at(numbers: list[int]) -> None:
    """From now on each of these calls of this process stops it, for the tracer to look (seccomp(2))."""
    load, equal, give = 0x20, 0x15, 0x06
    trace, allow = 0x7FF00000, 0x7FFF0000
    tests = [_Filter(equal, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    filters = [_Filter(load, 0, 0, 0), *tests, _Filter(give, 0, 0, allow), _Filter(give, 0, 0, trace)]
    program = _Program(len(filters), (_Filter * len(filters))(*filters))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program), 0, 0):  # no new privileges; the filter
        raise OSError(ctypes.get_errno(), "seccomp")


class Tracer:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._below = [os.path.realpath(folder) for folder in options.below]
        self._names = {CALLS[name][0]: name for name in options.calls}
        self._everything = options.everything
        self._count = 0
        self._log = open(options.log, "w", buffering=1, encoding="utf-8")  # noqa: SIM115  until the end

    def run(self) -> int:
        child = os.fork()
        if child == 0:
            self._become(self._options.command)
        os.waitpid(child, 0)
        ptrace(SETOPTIONS, child, 0, EVENTS_FORK | 1 << EVENT_SECCOMP | EXITKILL)
        ptrace(CONT, child)
        known = {child}
        while True:
            pid, status = os.waitpid(-1, WALL)
            if not os.WIFSTOPPED(status):
                if pid == child:
                    return KILLED if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                continue
            event, number = status >> 16, os.WSTOPSIG(status)
            if event == EVENT_SECCOMP:
                self._stopped(pid, child)
            new = pid not in known and number == signal.SIGSTOP
            known.add(pid)
            ptrace(CONT, pid, 0, 0 if event or new or number == signal.SIGTRAP else number)

    def _become(self, command: list[str]) -> NoReturn:
        try:
            ptrace(TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            stop_at(list(self._names))
            os.execvp(command[0], command)
        finally:
            os._exit(127)

    def _stopped(self, pid: int, leader: int) -> None:
        registers = Registers()
        ptrace(GETREGS, pid, 0, ctypes.byref(registers))
        name = self._names.get(registers[ORIG_RAX])
        path = self._path(pid, name, [registers[at] for at in ARGUMENTS]) if name else None
        if path is None:
            return
        self._count += 1
        self._log.write(f"{name} {path}\n")
        options = self._options
        if options.at is None or self._count < options.at or (self._count > options.at and not options.persist):
            return
        if options.error is None:
            os.kill(leader, signal.SIGKILL)  # the call is not made any more
            return
        registers[ORIG_RAX] = 2**64 - 1
        registers[RAX] = 2**64 - getattr(errno, options.error)
        ptrace(SETREGS, pid, 0, ctypes.byref(registers))

    def _path(self, pid: int, name: str, values: list[int]) -> str | None:
        """The files that a call is about, if it counts: if one of them is below a watched folder."""
        if not self._everything:
            if name == "openat" and not values[2] & O_WRITES:
                return None
            if name == "ioctl" and values[1] != FICLONE:
                return None
        paths = self._paths(pid, CALLS[name][1], values)
        watched = any(path == folder or path.startswith(f"{folder}/") for path in paths for folder in self._below)
        return " -> ".join(paths) if watched else None

    @staticmethod
    def _paths(pid: int, kinds: str, values: list[int]) -> list[str]:
        found = []
        at = 0
        for kind in kinds:
            try:
                if kind == "f":
                    found.append(os.readlink(f"/proc/{pid}/fd/{values[at]}"))
                elif kind == "p":
                    found.append(os.path.join(os.readlink(f"/proc/{pid}/cwd"), _text(pid, values[at])))
                elif kind == "a":
                    name = _text(pid, values[at + 1])
                    folder = "cwd" if ctypes.c_int(values[at]).value < 0 else f"fd/{values[at]}"
                    found.append(os.path.join(os.readlink(f"/proc/{pid}/{folder}"), name).rstrip("/"))
            except OSError:
                pass  # a bad descriptor or address: the call fails by itself
            at += 2 if kind == "a" else 1
        return found


def _text(pid: int, address: int) -> str:
    if not address:
        return ""
    text = b""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        while b"\0" not in text and len(text) < 8192:
            text += memory.read(256 - (address + len(text)) % 256)
    return os.fsdecode(text.partition(b"\0")[0])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--below", action="append", default=[])
    parser.add_argument("--calls", type=lambda text: text.split(","), default=MUTATING)
    parser.add_argument("--everything", action="store_true", help="count opens and ioctls that change nothing, too")
    parser.add_argument("--at", type=int)
    parser.add_argument("--error")
    parser.add_argument("--persist", action="store_true", help="fail every call from the N-th on")
    parser.add_argument("--log", required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if platform.machine() != "x86_64":
        print("only on x86-64", file=sys.stderr)
        return 126
    return Tracer(options).run()


if __name__ == "__main__":
    sys.exit(main())
