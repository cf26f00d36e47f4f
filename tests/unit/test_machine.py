"""What a container may use: its cgroup's share, in every arrangement of cgroups, and the machine's own without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelstore.transfer.machine import cores, fits_in_memory, memory_limit

MIB = 1024 * 1024
MACHINE = 1024 * 1024 * MIB
V2_NONE, V1_NONE = "max", "9223372036854771712"  # what the kernel writes for no limit


@pytest.fixture(autouse=True)
def large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 TiB and 64 cores, whatever this one has."""
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": MACHINE // 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))


class Cgroups:
    """A made-up /sys/fs/cgroup and /proc/self/cgroup."""

    def __init__(self, folder: Path, proc: str) -> None:
        self.root, self.proc = folder / "cgroup", folder / "proc"
        self.root.mkdir(exist_ok=True)
        self.proc.write_text(proc)

    def set(self, path: str, text: str) -> Cgroups:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return self

    @property
    def memory(self) -> int:
        return memory_limit(str(self.root), str(self.proc))

    @property
    def cores(self) -> int:
        return cores(str(self.root), str(self.proc))


def test_without_cgroups_it_is_the_machine(tmp_path: Path) -> None:
    assert memory_limit(str(tmp_path), str(tmp_path / "none")) == MACHINE
    assert cores(str(tmp_path), str(tmp_path / "none")) == 64
    empty = Cgroups(tmp_path, "0::/\n")
    assert (empty.memory, empty.cores) == (MACHINE, 64)


def test_v2(tmp_path: Path) -> None:
    groups = Cgroups(tmp_path, "0::/pod/app\n")
    groups.set("pod/app/memory.max", f"{512 * MIB}\n").set("pod/app/cpu.max", "250000 100000\n")
    assert (groups.memory, groups.cores) == (512 * MIB, 3)


def test_v2_without_a_limit(tmp_path: Path) -> None:
    groups = Cgroups(tmp_path, "0::/app\n")
    groups.set("app/memory.max", f"{V2_NONE}\n").set("app/cpu.max", f"{V2_NONE} 100000\n")
    assert (groups.memory, groups.cores) == (MACHINE, 64)


@pytest.mark.parametrize("tightest", ["memory.max", "a/memory.max", "a/b/memory.max", "a/b/c/memory.max"])
def test_the_smallest_limit_on_the_way_up_holds(tmp_path: Path, tightest: str) -> None:
    groups = Cgroups(tmp_path, "0::/a/b/c\n")
    for path in ("memory.max", "a/memory.max", "a/b/memory.max", "a/b/c/memory.max"):
        groups.set(path, str(100 * MIB if path == tightest else 200 * MIB))
        groups.set(path.replace("memory", "cpu"), "200000 100000" if path == tightest else "max 100000")
    assert (groups.memory, groups.cores) == (100 * MIB, 2)


def test_a_cgroup_beside_is_not_ones_own(tmp_path: Path) -> None:
    groups = Cgroups(tmp_path, "0::/a/b\n")
    groups.set("a/c/memory.max", "1").set("a/b/d/memory.max", "1").set("ab/memory.max", "1")
    assert groups.memory == MACHINE


@pytest.mark.parametrize("path", ["/", "/docker/0123abcd", "/../../kubepods/pod1", "/..", "relative", ""])
def test_a_container_that_sees_its_own_cgroup_as_the_root(tmp_path: Path, path: str) -> None:
    """The path is the host's, and not below the mount."""
    groups = Cgroups(tmp_path, f"0::{path}\n").set("memory.max", str(64 * MIB)).set("cpu.max", "150000 100000")
    assert (groups.memory, groups.cores) == (64 * MIB, 2)


V1 = """12:memory:/docker/x
11:cpu,cpuacct:/docker/x
10:cpuset:/docker/x
1:name=systemd:/docker/x
"""


@pytest.mark.parametrize("cpu", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize("path", ["/docker/x", ""])
def test_v1(tmp_path: Path, cpu: str, path: str) -> None:
    groups = Cgroups(tmp_path, V1)
    groups.set(f"memory{path}/memory.limit_in_bytes", f"{256 * MIB}\n")
    groups.set(f"{cpu}{path}/cpu.cfs_quota_us", "400000\n").set(f"{cpu}{path}/cpu.cfs_period_us", "100000\n")
    assert (groups.memory, groups.cores) == (256 * MIB, 4)


def test_v1_without_a_limit(tmp_path: Path) -> None:
    groups = Cgroups(tmp_path, V1).set("memory/memory.limit_in_bytes", V1_NONE)
    groups.set("cpu/cpu.cfs_quota_us", "-1\n").set("cpu/cpu.cfs_period_us", "100000\n")
    assert (groups.memory, groups.cores) == (MACHINE, 64)


def test_hybrid(tmp_path: Path) -> None:
    """Limits are set through v1, and v2 is there without controllers."""
    groups = Cgroups(tmp_path, f"{V1}0::/system.slice/x\n")
    groups.set("memory/docker/x/memory.limit_in_bytes", str(128 * MIB))
    groups.set("cpu,cpuacct/docker/x/cpu.cfs_quota_us", "50000").set("cpu,cpuacct/docker/x/cpu.cfs_period_us", "100000")
    (groups.root / "unified" / "system.slice").mkdir(parents=True)
    assert (groups.memory, groups.cores) == (128 * MIB, 1)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("100000 100000", 1), ("100001 100000", 2), ("1 100000", 1), ("10000000 100000", 64), ("0 100000", 64),
        ("100000 0", 64), ("max 100000", 64), ("max", 64), ("100000", 64), ("", 64), ("-1 100000", 64),
        ("1.5 1", 64), ("x y z", 64), ("300000 100000 5", 64),
    ],
)  # fmt: skip
def test_cores_of_a_quota(tmp_path: Path, quota: str, expected: int) -> None:
    assert Cgroups(tmp_path, "0::/\n").set("cpu.max", quota).cores == expected


def test_cores_that_one_is_pinned_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert Cgroups(tmp_path, "0::/\n").set("cpu.max", "800000 100000").cores == 1


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "12 34", "0x10", "many", "\u0661"])
def test_a_limit_that_is_none(tmp_path: Path, text: str) -> None:
    limit = Cgroups(tmp_path, "0::/\n").set("memory.max", text).memory
    assert 0 < limit <= MACHINE


@pytest.mark.parametrize("proc", ["", "\n", "0", "0::", "garbage\n", "::::", "x:memory\n", "0:/a:b:/c\n"])
def test_garbage_in_proc(tmp_path: Path, proc: str) -> None:
    groups = Cgroups(tmp_path, proc)
    assert (groups.memory, groups.cores) == (MACHINE, 64)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cgroups")


@settings(deadline=None, max_examples=100)
@given(text=st.binary(max_size=40), proc=st.binary(max_size=60))
def test_no_file_breaks_it(folder: Path, text: bytes, proc: bytes) -> None:
    groups = Cgroups(folder, "")
    for name in ("memory.max", "cpu.max"):
        (groups.root / name).write_bytes(text)
    for content in (proc, b"0::/\n"):
        groups.proc.write_bytes(content)
        assert 0 < groups.memory <= MACHINE
        assert 1 <= groups.cores <= 64


def test_a_directory_in_place_of_a_file(tmp_path: Path) -> None:
    groups = Cgroups(tmp_path, "0::/\n")
    (groups.root / "memory.max").mkdir()
    (groups.root / "cpu.max").mkdir()
    assert (groups.memory, groups.cores) == (MACHINE, 64)


def test_half_of_the_memory_is_for_the_model() -> None:
    assert fits_in_memory(50, limit=100)
    assert not fits_in_memory(51, limit=100)
    assert fits_in_memory(0, limit=1)
    assert fits_in_memory(1)
    assert not fits_in_memory(MACHINE)
