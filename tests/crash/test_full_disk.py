"""A full disk, from the start or in the middle, of bytes or of inodes: exit 10 at once, and well again with space."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.crash.lab import BIG, CHUNK, MIB, Model, Place, Store, ext4_image, mounted, served, some
from tests.support import finish, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.httpserver import HttpServer

Start = Callable[..., "subprocess.Popen[str]"]
NewStore = Callable[..., Store]
NO_SPACE = 10
AT_ONCE = 5.0  # seconds: the first pause before a retry that mattered would take longer
SMALL = 3 * MIB
ENOUGH = (BIG + MIB) * 100 // 95  # 5 % are left free


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def on(place: Place, like: Store) -> Store:
    return replace(like, place=place)


def fill(place: Place, *, leave: int = 0) -> Path:
    """Another program's file takes all the space but `leave` bytes."""
    hog = place.seen / "hog"
    with hog.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(MIB))
    with hog.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))
    if leave:
        os.truncate(hog, hog.stat().st_size - leave)
    return hog


@pytest.mark.parametrize("size", [BIG - 1 & ~4095, BIG + MIB], ids=["a byte", "the reserve"])
def test_too_small(store: Store, http_server: HttpServer, disk: Path, size: int) -> None:
    """Known before a byte is asked for."""
    model = served(http_server)
    with mounted("tmpfs", disk, f"size={size}") as place:
        small = on(place, store)
        small.fetch(model, timeout=AT_ONCE).failed(NO_SPACE, "needed")
        assert model.origin.sent <= 1, "a probe"
        small.check(size=0)
        place.run("mount", "-o", f"remount,size={ENOUGH}", place.inside)
        small.recover(model)


def test_just_enough(store: Store, http_server: HttpServer, disk: Path) -> None:
    """A model needs its own size and little more: no second copy of it on the way."""
    with mounted("tmpfs", disk, f"size={ENOUGH}") as place:
        on(place, store).recover(served(http_server))


def test_what_is_half_there_needs_no_room(store: Store, http_server: HttpServer, disk: Path) -> None:
    """To go on takes the rest of the space, not all of it once more."""
    model = served(http_server)
    with mounted("tmpfs", disk, f"size={ENOUGH}") as place:
        small = on(place, store)
        small.half_done(model)
        small.recover(model)


def test_what_others_left_makes_room(store: Store, http_server: HttpServer, disk: Path) -> None:
    """The half of another model that a killed process left goes, if this one needs the space."""
    other, model = served(http_server), served(http_server, seed=1)
    with mounted("tmpfs", disk, f"size={ENOUGH}") as place:
        small = on(place, store)
        small.half_done(other)
        for path in small.ingest():
            os.utime(path, (time.time() - 5,) * 2)  # a killed process is told from one that begins by its age
        small.recover(model)


@pytest.mark.parametrize("at", some([CHUNK + MIB, 0, 1, 5 * MIB, CHUNK, 2 * CHUNK, BIG - 4096], 7))
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_another_fills_it_meanwhile(
    store: Store, http_server: HttpServer, disk: Path, start: Start, kind: str, at: int
) -> None:
    """Ends at once, without a retry loop; what is there already stays readable; with space again the next one works."""
    first, model = served(http_server, MIB), served(http_server, seed=1)
    model.origin.pause_at = at
    with mounted(kind, disk, "size=64M" if kind == "tmpfs" else "", image=_disk_of(kind, disk)) as place:
        small = on(place, store)
        small.fetch(first).ok()
        process = start(small.command, "fetch", model.url, "--connections", "1")
        wait_until(model.origin.paused.is_set, process)
        hog = fill(place)
        hits = model.origin.hits
        model.origin.resume.set()
        done = finish(process, AT_ONCE)
        if done.returncode:  # all of it may have had its space by then
            done.failed(NO_SPACE)
        assert model.origin.hits - hits <= 3, "not asked again and again"
        small.fetch(first, "--offline").ok()
        small.kills += 1
        small.check(first.tree, model.tree, size=model.size)
        hog.unlink()
        small.recover(model, trees=(first.tree, model.tree))


def _disk_of(kind: str, folder: Path) -> Path | None:
    return ext4_image(folder, size=64 * MIB) if kind == "ext4" else None


@pytest.mark.parametrize("inodes", some(range(2, 33), 10))
def test_out_of_inodes_on_tmpfs(store: Store, http_server: HttpServer, disk: Path, inodes: int) -> None:
    with mounted("tmpfs", disk, f"size=64M,nr_inodes={inodes}") as place:
        small, model = on(place, store), served(http_server, SMALL)
        _out_of_inodes(small, model)
        place.run("mount", "-o", "remount,nr_inodes=1000", place.inside)
        small.recover(model)


@pytest.mark.parametrize("left", some(range(21), 7))
def test_out_of_inodes_on_ext4(store: Store, http_server: HttpServer, disk: Path, left: int) -> None:
    """Another program has made files until there are `left` inodes."""
    image = ext4_image(disk, "-N", "64", size=64 * MIB)
    with mounted("ext4", disk, image=image) as place:
        files = place.seen / "files"
        files.mkdir()
        for number in range(os.statvfs(place.seen).f_favail - left):
            (files / str(number)).touch()
        small, model = on(place, store), served(http_server, SMALL)
        _out_of_inodes(small, model)
        for file in files.iterdir():
            file.unlink()
        small.recover(model)


def _out_of_inodes(store: Store, model: Model) -> None:
    done = store.fetch(model, timeout=AT_ONCE)
    if done.returncode:
        done.failed(NO_SPACE)
    store.kills += 1
    if store.root.exists():
        store.check(model.tree, size=model.size)


@pytest.mark.parametrize("limit", some([100, 0, 4096, MIB, BIG - 1, CHUNK + 1], 4))
def test_file_size_limit(store: Store, http_server: HttpServer, limit: int) -> None:
    """`ulimit -f`, as batch systems set it: EFBIG, and SIGXFSZ that Python ignores."""
    model = served(http_server)
    done = store.fetch(model, prefix=("prlimit", f"--fsize={limit}"), timeout=AT_ONCE)
    assert done.returncode in (9, 10), done
    done.failed(done.returncode)
    store.kills += 1
    store.check(size=model.size)
    store.recover(model)


@pytest.mark.parametrize("files", some(range(4, 61), 7))
def test_few_open_files(store: Store, http_server: HttpServer, files: int) -> None:
    """`ulimit -n`: the model, or one clear error."""
    model = served(http_server)
    done = store.fetch(model, prefix=("prlimit", f"--nofile={files}"), timeout=30)
    if done.returncode and "Fatal Python error" not in done.stderr and files > 4:
        done.failed(done.returncode)
        assert done.returncode in (5, 9), done
    store.kills += 1
    store.check(model.tree, size=model.size)
    store.recover(model)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_read_only_before_the_fetch(store: Store, http_server: HttpServer, disk: Path, kind: str) -> None:
    """As a kernel does with a disk that has errors. Hits go on; what is missing cannot come."""
    model, other = served(http_server, SMALL), served(http_server, SMALL, seed=1)
    with mounted(kind, disk) as place:
        small = on(place, store)
        small.fetch(model).ok()
        place.run("mount", "-o", "remount,ro", place.inside)
        small.fetch(model).ok()
        small.fetch(other).failed(9)
        place.run("mount", "-o", "remount,rw", place.inside)
        small.recover(other, trees=(model.tree, other.tree))


@pytest.mark.parametrize("chunks", [1, 2])
def test_read_only_after_a_kill(store: Store, http_server: HttpServer, disk: Path, chunks: int) -> None:
    model = served(http_server)
    with mounted("tmpfs", disk) as place:
        small = on(place, store)
        small.half_done(model, chunks)
        place.run("mount", "-o", "remount,ro", place.inside)
        small.fetch(model).failed(9)
        place.run("mount", "-o", "remount,rw", place.inside)
        small.recover(model)
