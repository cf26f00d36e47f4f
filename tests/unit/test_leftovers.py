"""What killed processes left: found, taken over if surely dead, removed if of no use."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelstore.digest import Digest
from modelstore.transfer import limits
from modelstore.transfer.leftovers import JOURNAL, STAGED, find_leftovers, staged_name, sweep_staged, take_over
from tests.unit.engine import CHUNK, IDENTITY, body_of, leave, made_old, open_files, shrink_chunks, staging

BODY = body_of(4 * CHUNK - 10)
OTHER = Digest.of(b"other bytes")
DAY = 24 * 3600.0


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_chunks(monkeypatch)


@pytest.fixture(autouse=True)
def closed_files() -> Iterator[None]:
    before = open_files()
    yield
    assert open_files() <= before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    staging(tmp_path).mkdir(parents=True)
    return staging(tmp_path)


def journal_of(staged: Path) -> Path:
    return staged.with_suffix(JOURNAL)


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


class Held:
    """A staged file as its live owner has it."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR)
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


# -- names and finding -------------------------------------------------------------------------------------------------


def test_a_name_says_of_which_bytes_and_is_new() -> None:
    made = {staged_name(IDENTITY) for _ in range(100)} | {staged_name(None) for _ in range(100)}
    assert len(made) == 200
    assert {name.partition(".")[0] for name in made if "." in name} == {IDENTITY.hex[:32]}
    assert all("/" not in name for name in made)


def test_the_fullest_is_found_first(tmp_path: Path, folder: Path) -> None:
    sums = {index: f"{index:032x}" for index in range(4)}
    made = {count: leave(tmp_path, BODY, dict(list(sums.items())[:count])) for count in (1, 4, 2, 3)}
    found = find_leftovers(str(folder), IDENTITY, len(BODY))
    assert [leftover.path + STAGED for leftover in found] == [str(made[count]) for count in (4, 3, 2, 1)]
    assert dict(found[0].chunks) == sums
    assert [leftover.bytes for leftover in found] == [len(BODY), 3 * CHUNK, 2 * CHUNK, CHUNK]


def test_only_what_has_a_good_journal_of_the_same_bytes_is_found(tmp_path: Path, folder: Path) -> None:
    leave(tmp_path, BODY, identity=OTHER)
    leave(tmp_path, BODY[:-1])
    leave(tmp_path, BODY, {})
    journal_of(leave(tmp_path, BODY)).unlink()
    journal_of(leave(tmp_path, BODY)).write_bytes(b"garbage")
    leave(tmp_path, BODY).unlink()
    (folder / f"{IDENTITY.hex[:32]}.tmp").touch()
    (folder / staged_name(None)).touch()
    assert find_leftovers(str(folder), IDENTITY, len(BODY)) == []
    assert find_leftovers(str(folder / "none"), IDENTITY, len(BODY)) == []


def test_the_whole_identity_counts(tmp_path: Path, folder: Path) -> None:
    """The name has half of it; the other half is in the journal."""
    one, other = Digest("a" * 32 + "b" * 32), Digest("a" * 32 + "c" * 32)
    leave(tmp_path, BODY, identity=one)
    assert find_leftovers(str(folder), other, len(BODY)) == []
    assert len(find_leftovers(str(folder), one, len(BODY))) == 1


# -- taking over -------------------------------------------------------------------------------------------------------


def taken(staged: Path, size: int = len(BODY)) -> int | None:
    return take_over(str(staged).removesuffix(STAGED), f"{staged.parent}/new", size)


@pytest.mark.parametrize("mode", [0o600, 0o444])
def test_a_dead_owners_file_becomes_ones_own(tmp_path: Path, folder: Path, mode: int) -> None:
    staged = leave(tmp_path, BODY)
    staged.chmod(mode)
    inode = staged.stat().st_ino
    fd = taken(staged)
    assert fd is not None
    try:
        found = os.fstat(fd)
        assert (found.st_ino, found.st_mode & 0o777) == (inode, 0o600)
        assert os.pread(fd, len(BODY), 0) == BODY
        assert os.pwrite(fd, b"x", 0) == 1
        assert not os.get_inheritable(fd)
        assert names(folder) == {f"new{STAGED}", journal_of(staged).name}
        assert take_over(f"{folder}/new", f"{folder}/third", len(BODY)) is None  # it is held now
    finally:
        os.close(fd)


def test_a_live_owner_keeps_its_file(tmp_path: Path, folder: Path) -> None:
    staged = leave(tmp_path, BODY)
    before = names(folder)
    with Held(staged):
        staged.chmod(0o400)
        assert taken(staged) is None
        assert (names(folder), staged.stat().st_mode & 0o777) == (before, 0o400)
    fd = taken(staged)  # the lock went with its owner
    assert fd is not None
    os.close(fd)


@pytest.mark.parametrize("kind", ["missing", "link", "hard link", "too large", "directory", "fifo"])
def test_what_is_no_dead_owners_file_is_left_alone(tmp_path: Path, folder: Path, kind: str) -> None:
    staged, victim = folder / f"x{STAGED}", tmp_path / "victim"
    victim.write_bytes(BODY)
    victim.chmod(0o444)
    if kind == "link":
        staged.symlink_to(victim)
    elif kind == "hard link":
        staged.hardlink_to(victim)
    elif kind == "too large":
        staged.write_bytes(BODY + b"x")
    elif kind == "directory":
        staged.mkdir()
    elif kind == "fifo":
        os.mkfifo(staged)
    before = names(folder)
    assert taken(staged) is None
    assert names(folder) == before
    assert (victim.read_bytes(), victim.stat().st_mode & 0o777) == (BODY, 0o444)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_file_is_left_alone(tmp_path: Path, folder: Path) -> None:
    staged = leave(tmp_path, BODY)
    os.chown(staged, 65534, 65534)
    assert taken(staged) is None
    assert staged.exists()


def test_a_file_that_was_replaced_in_between_is_not_taken(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = leave(tmp_path, BODY)
    real = os.rename

    def rename(source: str, target: str) -> None:
        os.unlink(source)
        Path(source).write_bytes(b"another's")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        assert taken(staged) is None
    assert staged not in folder.iterdir()


def test_a_file_that_was_opened_twice_as_another_is_not_taken(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = leave(tmp_path, BODY)
    real = os.open

    def open_it(path: str, flags: int, *mode: int) -> int:
        if flags & os.O_RDWR and path == str(staged):
            os.rename(path, tmp_path / "aside")  # its inode number is not free for the other
            staged.write_bytes(b"another's")
        return real(path, flags, *mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_it)
        assert taken(staged) is None
    assert staged.read_bytes() == b"another's"


@pytest.mark.parametrize("call", ["rename", "fchmod", "fstat", "open"])
def test_what_the_file_system_refuses_is_not_taken(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    staged = leave(tmp_path, BODY)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        assert taken(staged) is None
    assert staged.read_bytes() == BODY


# -- sweeping ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("age", [0.0, 59.0, 61.0, DAY - 60, DAY + 60])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("journalled", [False, True])
def test_what_is_of_no_use_goes(tmp_path: Path, folder: Path, age: float, held: bool, journalled: bool) -> None:
    staged = leave(tmp_path, BODY, age=age)
    if not journalled:
        journal_of(staged).unlink()
    if held:
        with Held(staged):
            sweep_staged(str(folder), 60.0)
    else:
        sweep_staged(str(folder), 60.0)
    stays = age < 60 or (age < DAY and (held or journalled))
    assert names(folder) == ({staged.name} | ({journal_of(staged).name} if journalled else set()) if stays else set())


def test_files_without_an_identity_go_when_idle(folder: Path) -> None:
    old, new = folder / (staged_name(None) + STAGED), folder / (staged_name(None) + STAGED)
    for path in (old, new):
        path.touch()
    made_old(old, 61)
    sweep_staged(str(folder), 60.0)
    assert names(folder) == {new.name}


def test_only_the_newest_are_kept_to_be_resumed(tmp_path: Path, folder: Path) -> None:
    made = [leave(tmp_path, BODY, age=100.0 + number) for number in range(limits.MOST_STAGED + 3)]
    sweep_staged(str(folder), 60.0)
    kept = made[: limits.MOST_STAGED]
    assert names(folder) == {path.name for path in kept} | {journal_of(path).name for path in kept}


def test_those_in_use_are_not_counted(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_STAGED", 1)
    busy, fresh = leave(tmp_path, BODY, age=100), leave(tmp_path, BODY)
    dead, older = leave(tmp_path, BODY, age=200), leave(tmp_path, BODY, age=300)
    with Held(busy):
        sweep_staged(str(folder), 60.0)
    assert [path.exists() for path in (busy, fresh, dead, older)] == [True, True, True, False]


def test_asked_for_space_only_what_is_about_to_be_resumed_stays(tmp_path: Path, folder: Path) -> None:
    wanted, other = leave(tmp_path, BODY, age=100), leave(tmp_path, BODY, identity=OTHER, age=100)
    bare, fresh = leave(tmp_path, BODY, age=100), leave(tmp_path, BODY, identity=OTHER)
    journal_of(bare).unlink()
    sweep_staged(str(folder), 60.0, [IDENTITY])
    assert [path.exists() for path in (wanted, other, bare, fresh)] == [True, False, False, True]
    assert journal_of(wanted).exists()
    sweep_staged(str(folder), 60.0, [])
    assert names(folder) == {fresh.name, journal_of(fresh).name}


def test_a_journal_whose_file_is_gone_goes_after_a_day(tmp_path: Path, folder: Path) -> None:
    old, new, used = leave(tmp_path, BODY), leave(tmp_path, BODY), leave(tmp_path, BODY)
    old.unlink()
    new.unlink()
    for staged in (old, used):
        made_old(journal_of(staged), 86401)
    sweep_staged(str(folder), 60.0)
    assert names(folder) == {journal_of(new).name, used.name, journal_of(used).name}


def test_what_is_not_ours_stays(tmp_path: Path, folder: Path) -> None:
    victim = tmp_path / "victim"
    victim.touch()
    (folder / "notes.txt").touch()
    (folder / "deep").mkdir()
    (folder / f"deep{STAGED}").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "link").symlink_to(victim)
    for path in folder.iterdir():
        made_old(path, 2 * DAY)
    sweep_staged(str(folder), 60.0)
    assert names(folder) == {"notes.txt", "deep", f"deep{STAGED}", "fifo", "link"}
    assert victim.exists()
    sweep_staged(str(folder / "none"), 60.0)


def test_a_sweep_leaves_no_lock_behind(tmp_path: Path, folder: Path) -> None:
    staged = leave(tmp_path, BODY, age=100)
    sweep_staged(str(folder), 60.0)
    fd = taken(staged)
    assert fd is not None
    os.close(fd)
