"""A blob's second name, and a model's directory: the whole old one or the whole new one, and blobs never written to."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelstore.config import TierConfig
from modelstore.digest import ChunkSums, Digest
from modelstore.errors import BlobCorrupt, BlobNotFound, LayoutError, NoSpace
from modelstore.fetching import put
from modelstore.manifest import FileEntry
from modelstore.tiers.directory import DirectoryTier
from modelstore.transfer import link, tree
from modelstore.transfer.link import Linker, exchange
from modelstore.transfer.tree import LayoutRecord, Tree, check_target, find_damage
from tests.support import unshare

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = b"the bytes of a model" * 10_000
SUMS = ChunkSums.of([DATA])
CANNOT = [errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.EPERM, errno.EACCES]
FAILS = [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT]


def fail_with(code: int) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return call


# -- one file ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    path.chmod(0o444)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model" / "weights"


@pytest.fixture
def no_reflink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", fail_with(errno.EOPNOTSUPP))


@pytest.fixture
def only_copies(no_reflink: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", fail_with(errno.EXDEV))


def assert_placed(blob: Path, target: Path) -> None:
    assert blob.read_bytes() == target.read_bytes() == DATA
    assert target.stat().st_mode & 0o7777 == 0o444


def test_a_reflink_is_tried_first(blob: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ioctl(copy: int, request: int, source: int) -> int:
        assert request == link.FICLONE
        return os.pwrite(copy, os.pread(source, len(DATA), 0), 0)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(os, "link", fail_with(errno.EIO))
    Linker().place(str(blob), str(target), None)
    assert_placed(blob, target)
    assert blob.stat().st_nlink == 1


@pytest.mark.parametrize("code", CANNOT, ids=errno.errorcode.get)
def test_then_a_hard_link(blob: Path, target: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(fcntl, "ioctl", fail_with(code))
    Linker().place(str(blob), str(target), None)
    assert_placed(blob, target)
    assert blob.samefile(target)


@pytest.mark.parametrize("code", [*CANNOT, errno.EMLINK], ids=errno.errorcode.get)
@pytest.mark.parametrize("sums", [None, SUMS], ids=["without sums", "with sums"])
@pytest.mark.usefixtures("no_reflink")
def test_then_a_copy(
    blob: Path, target: Path, monkeypatch: pytest.MonkeyPatch, code: int, sums: ChunkSums | None
) -> None:
    monkeypatch.setattr(os, "link", fail_with(code))
    Linker().place(str(blob), str(target), sums)
    assert_placed(blob, target)
    assert not blob.samefile(target)


def test_what_does_not_work_is_not_tried_again(blob: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for module, name in ((fcntl, "ioctl"), (os, "link")):
        cannot = fail_with(errno.EXDEV)
        monkeypatch.setattr(module, name, lambda *_, name=name, cannot=cannot, **__: (calls.append(name), cannot()))
    linker = Linker()
    assert not linker.copies
    for number in range(3):
        linker.place(str(blob), f"{target}{number}", SUMS)
    assert calls == ["ioctl", "link"]
    assert linker.copies


@pytest.mark.parametrize("code", FAILS, ids=errno.errorcode.get)
@pytest.mark.parametrize("way", ["ioctl", "link", "copy_file_range", "fsync", "fchmod"])
@pytest.mark.usefixtures("no_reflink")
def test_a_failure_is_no_reason_for_another_way(
    blob: Path, target: Path, monkeypatch: pytest.MonkeyPatch, way: str, code: int
) -> None:
    if way not in ("ioctl", "link"):
        monkeypatch.setattr(os, "link", fail_with(errno.EXDEV))
    monkeypatch.setattr(fcntl if way == "ioctl" else os, way, fail_with(code))
    with pytest.raises(OSError) as caught:
        Linker().place(str(blob), str(target), SUMS)
    assert caught.value.errno == code
    assert not target.exists()


@pytest.mark.parametrize("sums", [None, SUMS], ids=["without sums", "with sums"])
@pytest.mark.parametrize("wrong", [b"", DATA[:-1], DATA + b"x", b"?" + DATA[1:]], ids="empty short long other".split())
@pytest.mark.usefixtures("only_copies")
def test_a_copy_that_came_out_wrong_is_refused(
    blob: Path, target: Path, monkeypatch: pytest.MonkeyPatch, sums: ChunkSums | None, wrong: bytes
) -> None:
    monkeypatch.setattr(link, "_copy_bytes", lambda _, copy: link.write_all(copy, wrong, 0))
    with pytest.raises(BlobCorrupt):
        Linker().place(str(blob), str(target), sums)
    assert not target.exists()
    assert blob.read_bytes() == DATA


@pytest.mark.usefixtures("only_copies")
def test_a_blob_that_rotted_is_not_copied(blob: Path, target: Path) -> None:
    blob.chmod(0o600)
    blob.write_bytes(b"?" + DATA[1:])
    with pytest.raises(BlobCorrupt):
        Linker().place(str(blob), str(target), SUMS)
    assert not target.exists()


@pytest.mark.parametrize("code", CANNOT, ids=errno.errorcode.get)
@pytest.mark.parametrize("copied", [0, 1000])
@pytest.mark.usefixtures("only_copies")
def test_a_copy_goes_on_in_memory_where_the_kernel_cannot(
    blob: Path, target: Path, monkeypatch: pytest.MonkeyPatch, code: int, copied: int
) -> None:
    def copy_file_range(source: int, copy: int, count: int, source_at: int, copy_at: int) -> int:
        if copy_at < copied:
            return os.pwrite(copy, os.pread(source, 7, source_at), copy_at)
        return fail_with(code)()  # type: ignore[no-any-return]

    monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    Linker().place(str(blob), str(target), SUMS)
    assert_placed(blob, target)


@pytest.mark.usefixtures("only_copies")
def test_a_copy_that_the_kernel_ends_early_is_noticed(
    blob: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems answer 0 before the end."""
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    with pytest.raises(BlobCorrupt):
        Linker().place(str(blob), str(target), SUMS)
    assert not target.exists()


@pytest.mark.usefixtures("only_copies")
def test_a_copy_is_durable_and_its_mode_too(blob: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fchmod", "fsync"):
        real: Callable[..., Any] = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))[1])
    Linker().place(str(blob), str(target), SUMS)
    assert calls == ["fchmod", "fsync"]


@pytest.mark.parametrize("ways", ["reflink", "hard link", "copy"])
@pytest.mark.parametrize("there", ["file", "dangling link"])
def test_what_is_in_the_way_is_not_touched(
    blob: Path, target: Path, monkeypatch: pytest.MonkeyPatch, ways: str, there: str
) -> None:
    if ways != "reflink":
        monkeypatch.setattr(fcntl, "ioctl", fail_with(errno.EOPNOTSUPP))
    if ways == "copy":
        monkeypatch.setattr(os, "link", fail_with(errno.EXDEV))
    outside = target.with_name("outside")
    target.write_text("precious") if there == "file" else target.symlink_to(outside)
    with pytest.raises(FileExistsError):
        Linker().place(str(blob), str(target), SUMS)
    assert not outside.exists()
    assert target.is_symlink() or target.read_text() == "precious"


def test_a_link_is_no_blob(blob: Path, target: Path) -> None:
    (blob.parent / "alias").symlink_to(blob)
    with pytest.raises(OSError):
        Linker().place(str(blob.parent / "alias"), str(target), SUMS)
    assert not os.path.lexists(target)


def test_between_two_file_systems_it_is_a_copy(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    code = """
import os, sys
from modelstore.transfer.link import Linker
from modelstore.transfer.files import hash_file
one, two = sys.argv[1:]
with open(f"{one}/blob", "wb") as file:
    file.write(os.urandom(3_000_000))
linker = Linker()
linker.place(f"{one}/blob", f"{two}/x", None)
assert linker.copies and os.stat(f"{one}/blob").st_dev != os.stat(f"{two}/x").st_dev
assert hash_file(f"{one}/blob") == hash_file(f"{two}/x")
assert os.stat(f"{two}/x").st_mode & 0o7777 == 0o444
"""
    mounts = 'mount -t tmpfs one "$0/one" && mount -t tmpfs two "$0/two" && exec "$@"'
    prefix = unshare("--mount", script=mounts, root=tmp_path)
    command = [*prefix, sys.executable, "-c", code, str(tmp_path / "one"), str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# -- exchange ----------------------------------------------------------------------------------------------------------


def test_two_directories_are_swapped(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not exchange(str(tmp_path / "one"), str(tmp_path / "other")):
        pytest.skip("this file system cannot")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["other"]
    with pytest.raises(FileNotFoundError):
        exchange(str(tmp_path / "one"), str(tmp_path / "missing"))


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, None])
def test_where_there_is_no_exchange_it_says_so(monkeypatch: pytest.MonkeyPatch, code: int | None) -> None:
    class Library:
        @staticmethod
        def renameat2(*_: Any) -> int:
            ctypes.set_errno(code or 0)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Library() if code else object())
    assert exchange("/nowhere/one", "/nowhere/other") is False


# -- a tree ------------------------------------------------------------------------------------------------------------

OLD = {"config.json": b"old", "d/weights": b"old weights", "gone": b"old too"}
NEW = {"config.json": b"new", "d/weights": b"new weights", "e/f/more": b"new too"}


class Bench:
    """A tier, and trees to lay out from it at one target."""

    def __init__(self, root: Path, target: Path) -> None:
        self.tier = DirectoryTier(TierConfig(str(root), "nvme"))
        self.root, self.target = root, target

    def tree(self, files: dict[str, bytes], layout: str = "files") -> Tree:
        for data in files.values():
            put(self.tier, data)
        entries = {path: FileEntry(path, Digest.of(data), len(data)) for path, data in files.items()}
        return Tree(self.tier, str(self.target), layout, Digest.of(repr(sorted(files.items())).encode()), entries)

    def publish(self, files: dict[str, bytes]) -> None:
        self.tree(files).publish()

    def found(self) -> dict[str, bytes] | None:
        if not self.target.exists():
            return None
        files = (path for path in self.target.rglob("*") if not path.is_dir())
        return {str(path.relative_to(self.target)): path.read_bytes() for path in files}

    def siblings(self) -> list[str]:
        return sorted(os.listdir(self.target.parent)) if self.target.parent.exists() else []

    def blobs(self) -> dict[str, tuple[bytes, int, int]]:
        paths = (self.root / "blobs").iterdir()
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in paths}


@pytest.fixture(params=["own", "elsewhere"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    root = tmp_path / "store"
    return Bench(root, root / "models" / "0123456789abcdef" if request.param == "own" else tmp_path / "x" / "model")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "store", tmp_path / "x" / "model")


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(tree, "exchange", lambda *_: False)
    return bool(request.param)


@pytest.mark.usefixtures("swap")
def test_a_tree_is_published_and_replaced(bench: Bench) -> None:
    bench.publish(OLD)
    assert bench.found() == OLD
    bench.publish(NEW)
    assert bench.found() == NEW
    assert bench.siblings() == [bench.target.name]
    folders = [bench.target, *(path for path in bench.target.rglob("*") if path.is_dir())]
    assert {path.stat().st_mode & 0o7777 for path in folders} == {0o755}
    assert bench.tree(NEW).is_recorded()
    assert not bench.tree(OLD).is_recorded()


@pytest.mark.usefixtures("swap", "no_reflink")
def test_a_blob_that_is_linked_into_a_target_is_never_written_to(bench: Bench) -> None:
    bench.publish(OLD)
    before = bench.blobs()
    assert (bench.target / "d/weights").samefile(bench.root / "blobs" / Digest.of(b"old weights").filename)
    bench.publish(NEW)
    bench.publish({"config.json": b"", "d": b"a file now"})
    bench.publish(OLD)
    assert before.items() <= bench.blobs().items()


@pytest.mark.parametrize("replacing", [False, True])
def test_names_are_durable_before_and_after_the_swap(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, swap: bool, replacing: bool
) -> None:
    if replacing:
        bench.publish(OLD)
    new = bench.tree(NEW)
    events: list[str] = []
    target, parent = str(bench.target), str(bench.target.parent)

    def watch(module: Any, name: str, describe: Callable[..., str]) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: (events.append(describe(*args)), real(*args))[1])

    watch(os, "fsync", lambda fd: os.readlink(f"/proc/self/fd/{fd}"))
    watch(tree, "exchange", lambda *_: "swap" if swap else "cannot")
    watch(os, "rename", lambda _, to: "swap" if to == target else "other")
    new.publish()
    assert parent in events
    swapped = len(events) - 1 - events[::-1].index("swap")
    staged = {
        event.removeprefix(f"{parent}/").partition("/")[2] for event in events[:swapped] if ".modelstore" in event
    }
    assert {"", "d", "e", "e/f"} <= staged
    assert events.index(parent, swapped) == swapped + 1


@pytest.mark.parametrize("adopted", [False, True])
def test_a_complete_target_is_left_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch, adopted: bool) -> None:
    if adopted:
        for path, data in OLD.items():
            (bench.target / path).parent.mkdir(parents=True, exist_ok=True)
            (bench.target / path).write_bytes(data)
    else:
        bench.publish(OLD)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (bench.target, *bench.target.rglob("*"))}
    monkeypatch.setattr(tree, "exchange", fail_with(errno.EIO))
    monkeypatch.setattr(Linker, "place", fail_with(errno.EIO))
    again = bench.tree(OLD)
    assert again.is_recorded() is not adopted
    again.publish()
    assert before == {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in before}
    assert bench.tree(OLD).is_recorded()


@pytest.mark.parametrize("change", ["touched", "same size", "removed", "replaced", "a link"])
def test_a_changed_file_is_noticed_by_its_stat(bench: Bench, tmp_path: Path, change: str) -> None:
    bench.publish(OLD)
    path = bench.target / "d/weights"
    if change == "touched":
        os.utime(path, ns=(1, 1))
    else:
        path.unlink()
    if change == "same size":
        path.write_bytes(b"OLD weights")
    elif change == "replaced":
        path.write_bytes(b"others")
    elif change == "a link":
        path.symlink_to(tmp_path)
    assert not bench.tree(OLD).is_recorded()


def test_another_layout_of_the_same_files_is_recorded_and_not_built_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.publish(OLD)
    monkeypatch.setattr(Linker, "place", fail_with(errno.EIO))
    again = bench.tree(OLD, "vllm")
    again.publish()
    assert again.record is not None
    assert again.record.layout == "vllm"


@pytest.mark.usefixtures("swap")
@pytest.mark.parametrize("path", ["foreign", "d/foreign", "config.json", "d/weights"])
def test_what_others_put_there_is_not_replaced(elsewhere: Bench, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    elsewhere.publish(OLD)
    (elsewhere.target / path).unlink(missing_ok=True)
    (elsewhere.target / path).write_bytes(b"precious")
    monkeypatch.setattr(Linker, "place", fail_with(errno.EIO))  # nothing is even built
    with pytest.raises(LayoutError, match="already holds"):
        elsewhere.publish(NEW)
    assert elsewhere.found() == {**OLD, path: b"precious"}
    assert elsewhere.siblings() == ["model"]


@pytest.mark.usefixtures("swap")
def test_the_same_name_and_size_do_not_make_a_file_ours(elsewhere: Bench) -> None:
    elsewhere.target.mkdir(parents=True)
    (elsewhere.target / "config.json").write_bytes(b"hat")
    with pytest.raises(LayoutError, match="already holds"):
        elsewhere.publish(NEW)
    assert elsewhere.found() == {"config.json": b"hat"}


@pytest.mark.usefixtures("swap")
def test_what_comes_while_the_tree_is_built_is_not_replaced(elsewhere: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere.publish(OLD)
    build = Tree._build

    def build_slowly(self: Tree, staged: str) -> None:
        build(self, staged)
        (elsewhere.target / "foreign").write_bytes(b"precious")

    monkeypatch.setattr(Tree, "_build", build_slowly)
    with pytest.raises(LayoutError):
        elsewhere.publish(NEW)
    assert elsewhere.found() == {**OLD, "foreign": b"precious"}


@pytest.mark.parametrize("kind", ["file", "link to a directory", "dangling link"])
def test_a_target_that_is_no_directory_is_refused(elsewhere: Bench, tmp_path: Path, kind: str) -> None:
    elsewhere.target.parent.mkdir()
    if kind == "file":
        elsewhere.target.write_text("precious")
    else:
        elsewhere.target.symlink_to(tmp_path if kind == "link to a directory" else "nowhere")
    before = elsewhere.target.lstat()
    with pytest.raises(LayoutError):
        elsewhere.publish(NEW)
    assert elsewhere.target.lstat() == before
    assert elsewhere.siblings() == ["model"]


def test_an_empty_directory_is_a_fine_target(elsewhere: Bench) -> None:
    elsewhere.target.mkdir(parents=True)
    elsewhere.publish(NEW)
    assert elsewhere.found() == NEW


@pytest.mark.timeout(30)
def test_a_pipe_in_the_way_is_refused_and_not_read(elsewhere: Bench) -> None:
    elsewhere.target.mkdir(parents=True)
    os.mkfifo(elsewhere.target / "empty.txt")
    with pytest.raises(LayoutError, match="already holds"):
        elsewhere.publish({"empty.txt": b""})


def test_damage_in_our_own_directory_is_healed(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store", tmp_path / "store/models/0123456789abcdef")
    bench.publish(OLD)
    (bench.target / "gone").unlink()
    changed = bench.target / min(OLD)
    changed.unlink()
    changed.write_text("?")
    bench.publish(OLD)
    assert bench.found() == OLD
    (bench.target / "foreign").write_text("?")
    with pytest.raises(LayoutError, match="foreign"):
        bench.publish(NEW)
    assert (bench.target / "foreign").read_text() == "?"


@pytest.mark.usefixtures("swap")
@pytest.mark.parametrize("replacing", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["mkdir", "chmod", "link", "fsync"])
def test_a_failure_leaves_what_was_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, call: str, code: int, replacing: bool
) -> None:
    bench.publish(OLD) if replacing else bench.target.parent.mkdir(parents=True)
    new = bench.tree(NEW)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "ioctl", fail_with(errno.EOPNOTSUPP))
        patch.setattr(os, call, fail_with(code))
        if call == "link":
            patch.setattr(os, "copy_file_range", fail_with(code))
            patch.setattr(os, "pwrite", fail_with(code))
        with pytest.raises(NoSpace if code in (errno.ENOSPC, errno.EDQUOT) else LayoutError):
            new.publish()
    assert bench.found() == (OLD if replacing else None)
    assert bench.siblings() == ([bench.target.name] if replacing else [])
    new.publish()
    assert bench.found() == NEW


def test_a_second_rename_that_fails_is_undone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.publish(OLD)
    real, target = os.rename, str(bench.target)
    calls: list[str] = []

    def rename(source: str, destination: str) -> None:
        if destination == target:
            calls.append(source)
            if len(calls) == 2:  # the first finds the target in the way, the second puts the new tree there
                raise OSError(errno.EIO, "Input/output error")
        real(source, destination)

    monkeypatch.setattr(tree, "exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(LayoutError):
        bench.publish(NEW)
    assert len(calls) == 3
    assert bench.found() == OLD
    assert bench.siblings() == [bench.target.name]


def test_a_target_that_goes_away_in_between_is_made_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.publish(OLD)
    real, calls = exchange, []

    def late(staged: str, target: str) -> bool:
        if not calls:
            calls.append(target)
            os.rename(target, f"{target}.moved")
        return real(staged, target)

    monkeypatch.setattr(tree, "exchange", late)
    bench.publish(NEW)
    assert calls
    assert bench.found() == NEW


@pytest.mark.parametrize("theirs", [NEW, OLD], ids=["the same", "the old one"])
def test_a_target_that_comes_between_two_renames_is_looked_at_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, theirs: dict[str, bytes]
) -> None:
    """Where there is neither exchange nor lock (some network file systems), two processes may replace at once."""
    bench.publish(OLD)
    bench.tree(NEW)
    real, target = os.rename, str(bench.target)
    calls: list[str] = []

    def rename(source: str, destination: str) -> None:
        if destination == target:
            calls.append(source)
            if len(calls) == 2:
                monkeypatch.setattr(os, "rename", real)
                bench.publish(theirs)
                monkeypatch.setattr(os, "rename", rename)
        real(source, destination)

    monkeypatch.setattr(tree, "exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", rename)
    bench.publish(NEW)
    assert bench.found() == NEW
    assert bench.siblings() == [bench.target.name]


def test_a_target_that_never_stays_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.publish(OLD)
    monkeypatch.setattr(tree, "exchange", fail_with(errno.ENOENT))
    with pytest.raises(LayoutError) as caught:
        bench.publish(NEW)
    assert caught.value.retryable
    assert bench.siblings() == [bench.target.name]


def test_another_process_that_was_faster_wins(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Tree._build

    def build_late(self: Tree, staged: str) -> None:
        build(self, staged)
        monkeypatch.undo()
        bench.publish(NEW)

    monkeypatch.setattr(Tree, "_build", build_late)
    bench.publish(NEW)
    assert bench.found() == NEW
    assert bench.siblings() == [bench.target.name]


def test_a_blob_that_is_gone_is_said_to_be(bench: Bench) -> None:
    new = bench.tree(NEW)
    (bench.root / "blobs" / Digest.of(b"new weights").filename).unlink()
    with pytest.raises(BlobNotFound):
        new.publish()
    assert bench.found() is None


def test_what_killed_processes_left_is_dropped_when_it_is_old(elsewhere: Bench) -> None:
    parent = elsewhere.target.parent
    old = time.time() - tree.STALE_AFTER - 60
    for name, stale in (
        (".model.a.modelstore", True),
        (".model.b.modelstore", False),
        (".other.c.modelstore", True),
    ):
        (parent / name / "d").mkdir(parents=True)
        if stale:
            os.utime(parent / name, (old, old))
    for name in (".model.precious", "model.modelstore"):
        (parent / name).mkdir()
        os.utime(parent / name, (old, old))
    elsewhere.publish(NEW)
    kept = [".model.b.modelstore", ".model.precious", ".other.c.modelstore", "model", "model.modelstore"]
    assert elsewhere.siblings() == kept


# -- killed at every step ----------------------------------------------------------------------------------------------

KILLER = """
import fcntl, json, os, sys
from pathlib import Path
from modelstore.transfer import tree
from tests.unit.test_link_and_tree import NEW, OLD, Bench

scratch, place, has_exchange = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "exchange"
if not has_exchange:
    tree.exchange = lambda *_: False


def cannot(*_):
    raise OSError(95, "Operation not supported")


fcntl.ioctl = cannot  # hard links, so that a write to a target would be one to a blob
counter = stop_at = 0


def watch(module, name):
    real = getattr(module, name)

    def call(*args, **kwargs):
        global counter
        for step in ("before", "after"):
            counter += 1
            if counter == stop_at:
                os.write(2, f"{step} {name}".encode())
                os._exit(9)
            if step == "before":
                result = real(*args, **kwargs)
        return result

    setattr(module, name, call)



results = []
while True:
    stop_at += 1
    root = scratch / f"{stop_at}"
    target = root / "models/0123456789abcdef" if place == "own" else root.with_name(f"{stop_at}-x") / "model"
    bench = Bench(root, target)
    bench.publish(OLD) if sys.argv[4] == "replace" else bench.tree(OLD)
    new, blobs = bench.tree(NEW), bench.blobs()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(write, 2)
        for name in ("rename", "link", "mkdir", "chmod", "unlink", "rmdir", "fsync"):
            watch(os, name)
        watch(tree, "exchange")
        new.publish()
        os._exit(0)
    os.close(write)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    where = os.read(read, 1000).decode()
    os.close(read)
    found = bench.found()
    state = {repr(OLD): "old", repr(NEW): "new", repr(None): "absent"}
    look = state.get(repr(dict(sorted(found.items())) if found is not None else None), f"torn: {found}")
    bench.tree(NEW).publish()
    results.append([code, where, look, bench.found() == NEW, blobs == bench.blobs()])
    if code == 0:
        break
print(json.dumps(results))
"""


@pytest.mark.parametrize(
    ("what", "way", "place"),
    [
        ("first", "exchange", "elsewhere"),
        ("replace", "exchange", "own"),
        ("replace", "exchange", "elsewhere"),
        ("replace", "two renames", "own"),
    ],
)
def test_killed_at_any_step_a_target_is_the_whole_old_or_the_whole_new_one(
    tmp_path: Path, place: str, way: str, what: str
) -> None:
    repository = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path), place, way, what],
        capture_output=True, text=True, timeout=100, check=False, cwd=repository,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    allowed = {"new", "old" if what == "replace" else "absent"}
    assert {look for code, _, look, *_ in results} == allowed | ({"absent"} if way == "two renames" else set())
    for code, where, look, healed, blobs_untouched in results:
        assert code == 9 or (code, look) == (0, "new"), (where, look)
        if look == "absent" and what == "replace":
            assert where in ("after rename", "before rename"), where  # only between the two
        assert healed, f"killed {where}: the next call did not just work"
        assert blobs_untouched, f"killed {where}: a blob was written to"
    assert len(results) > 20


# -- records -----------------------------------------------------------------------------------------------------------

RECORD = LayoutRecord("/srv/model", "files", Digest.of(b""), {"a": (1, 2, 3), "b/c": (4, 5, 6)}, ("a",))


def test_a_record_survives_the_way_to_disk() -> None:
    assert LayoutRecord.from_json(RECORD.to_json()) == RECORD
    assert b"damaged" not in LayoutRecord("/x", "files", Digest.of(b""), {}).to_json()


BAD = [None, b"", b"null", b"[]", b"3", b"{}", b"\xff", b"[" * 100_000, b'{"version":2}', b'{"version":1,"files":[]}']


@pytest.mark.parametrize("raw", BAD, ids=range(len(BAD)))
def test_what_is_no_record_is_none(raw: bytes | None) -> None:
    assert LayoutRecord.from_json(raw) is None


DAMAGED: list[tuple[str, Any]] = [
    *(("version", value) for value in (None, 2, "1", [])),
    *(("target", value) for value in (None, 3, [], {})),
    *(("layout", value) for value in (None, 3, [])),
    *(("manifest", value) for value in (None, 3, "x", "sha256:../x", [])),
    *(("files", value) for value in (None, 3, "x", [3], {"a": 3}, {"a": [1, 2]}, {"a": ["1", "2", "3"]})),
    *(("damaged", value) for value in (3, "x", [3], {"a": 3})),
]


@pytest.mark.parametrize(("field", "value"), DAMAGED)
def test_a_damaged_record_is_none(field: str, value: Any) -> None:
    assert LayoutRecord.from_json(json.dumps({**json.loads(RECORD.to_json()), field: value}).encode()) is None


@settings(deadline=None)
@given(st.binary())
def test_any_bytes_are_no_record(raw: bytes) -> None:
    assert LayoutRecord.from_json(raw) is None


def test_damage_is_found_in_copies_and_not_in_what_others_changed(
    elsewhere: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", fail_with(errno.EOPNOTSUPP))
    monkeypatch.setattr(os, "link", fail_with(errno.EXDEV))
    new = elsewhere.tree(NEW)
    new.publish()
    assert new.record is not None
    entries = {path: FileEntry(path, Digest.of(data), len(data)) for path, data in NEW.items()}
    assert find_damage(new.record, entries, elsewhere.tier) is None
    rotten = elsewhere.target / "d/weights"
    before = rotten.stat()
    rotten.chmod(0o644)
    rotten.write_bytes(b"NEW weights")
    os.utime(rotten, ns=(before.st_atime_ns, before.st_mtime_ns))
    (elsewhere.target / "config.json").unlink()
    (elsewhere.target / "e/f/more").unlink()
    (elsewhere.target / "e/f/more").write_bytes(b"mine now")
    damage = find_damage(new.record, entries, elsewhere.tier)
    assert damage is not None
    assert sorted(damage.damaged) == ["config.json", "d/weights"]


def test_damage_that_was_found_is_healed(elsewhere: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", fail_with(errno.EOPNOTSUPP))
    monkeypatch.setattr(os, "link", fail_with(errno.EXDEV))
    new = elsewhere.tree(NEW)
    new.publish()
    rotten = elsewhere.target / "d/weights"
    before = rotten.stat()
    rotten.chmod(0o644)
    rotten.write_bytes(b"NEW weights")
    os.utime(rotten, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert new.is_recorded()  # as far as stats can tell
    assert new.record is not None
    entries = {path: FileEntry(path, Digest.of(data), len(data)) for path, data in NEW.items()}
    damage = find_damage(new.record, entries, elsewhere.tier)
    assert damage is not None
    elsewhere.tier.write_layout(str(elsewhere.target), damage.to_json())
    again = elsewhere.tree(NEW)
    assert not again.is_recorded()
    again.publish()
    assert elsewhere.found() == NEW
    assert elsewhere.tree(NEW).is_recorded()


@pytest.mark.parametrize(("path", "fine"), [("config.json", True), ("d/weights", True), ("foreign", False)])
def test_a_target_in_the_way_is_refused_beforehand(elsewhere: Bench, path: str, fine: bool) -> None:
    sizes = {name: len(data) for name, data in NEW.items()}
    (elsewhere.target / path).parent.mkdir(parents=True)
    (elsewhere.target / path).write_bytes(NEW.get(path, b"precious"))
    if fine:
        check_target(elsewhere.tier, str(elsewhere.target), sizes)
        (elsewhere.target / path).write_bytes(b"another size altogether")
    with pytest.raises(LayoutError):
        check_target(elsewhere.tier, str(elsewhere.target), sizes)
    assert not elsewhere.root.exists()
