"""The journal is a hint: whatever happened to it, it is read without harm."""

from __future__ import annotations

import errno
import os
import re
import threading
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelstore.digest import CHUNK_SIZE, Digest
from modelstore.transfer.journal import Journal, read_journal

IDENTITY = Digest.of(b"a")
CHUNKS = 12
SIZE = CHUNKS * CHUNK_SIZE - 100
SUMS = {index: f"{index:x}".rjust(32, "a") for index in range(CHUNKS - 1, -1, -1)}
RAW = (
    f'{{"chunk_size":16777216,"identity":"{IDENTITY.hex}","size":{SIZE},"version":1}}\n'
    + "".join(f"{index} {SUMS[index]}\n" for index in SUMS)
).encode()


def read(raw: bytes, folder: Path) -> dict[int, str]:
    path = folder / os.urandom(8).hex()
    path.write_bytes(raw)
    try:
        return dict(read_journal(str(path), IDENTITY, SIZE).chunks)
    finally:
        path.unlink()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journals")


def assert_usable(found: dict[int, str]) -> None:
    assert all(0 <= index < CHUNKS for index in found)
    assert all(re.fullmatch("[0-9a-f]{32}", chunk_sum) for chunk_sum in found.values())


# -- what is written ---------------------------------------------------------------------------------------------------


def test_what_is_recorded_is_read_back_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "j"
    first, second = dict(list(SUMS.items())[:5]), dict(list(SUMS.items())[5:])
    journal = Journal(str(path), IDENTITY, SIZE, first)
    assert read_journal(str(path), IDENTITY, SIZE).chunks == first
    for item in second.items():
        journal.record(*item)
        assert read_journal(str(path), IDENTITY, SIZE).chunks[item[0]] == item[1]  # at once: a kill gives no notice
    journal.close()
    journal.close()
    assert path.read_bytes() == RAW
    assert path.stat().st_mode & 0o777 == 0o600


@settings(deadline=None, max_examples=50)
@given(chunks=st.dictionaries(st.integers(0, 999), st.from_regex("[0-9a-f]{32}", fullmatch=True)))
def test_any_chunks_come_back(folder: Path, chunks: dict[int, str]) -> None:
    path = str(folder / os.urandom(8).hex())
    Journal(path, IDENTITY, 1000 * CHUNK_SIZE, chunks).close()
    assert read_journal(path, IDENTITY, 1000 * CHUNK_SIZE).chunks == chunks
    assert read_journal(path, IDENTITY, 999 * CHUNK_SIZE + 1).chunks == {}


def test_a_chunk_that_was_read_again_has_its_last_sum(tmp_path: Path) -> None:
    path = str(tmp_path / "j")
    journal = Journal(path, IDENTITY, SIZE, {0: "0" * 32})
    journal.record(0, "1" * 32)
    journal.close()
    assert read_journal(path, IDENTITY, SIZE).chunks == {0: "1" * 32}


def test_threads_may_record_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "j")
    size = 800 * CHUNK_SIZE
    journal = Journal(path, IDENTITY, size, {})
    start = threading.Barrier(8)

    def record(number: int) -> None:
        start.wait()
        for index in range(number, 800, 8):
            journal.record(index, f"{index:032x}")

    threads = [threading.Thread(target=record, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    assert read_journal(path, IDENTITY, size).chunks == {index: f"{index:032x}" for index in range(800)}


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_a_journal_is_a_new_file(tmp_path: Path, kind: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "j"
    if kind != "dangling":
        victim.write_bytes(b"precious")
    if kind == "file":
        path.write_bytes(b"precious")
    else:
        path.symlink_to(victim)
    with pytest.raises(FileExistsError):
        Journal(str(path), IDENTITY, SIZE, SUMS)
    assert kind == "dangling" or path.read_bytes() == b"precious"
    assert kind != "dangling" or not victim.exists()


# -- writes that fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_write_that_fails_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def write(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    path = str(tmp_path / "j")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        journal = Journal(path, IDENTITY, SIZE, SUMS)
        journal.record(0, SUMS[0])
    journal.close()
    assert read_journal(path, IDENTITY, SIZE).chunks == {}


@pytest.mark.parametrize("room", [0, 1, 30, 90, 150, len(RAW) - 1])
def test_what_a_full_disk_took_is_a_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """And once a write has failed no other is tried: it would be glued to the half line before it."""
    left = [room]
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if not left[0]:
            left[0] = 10**6  # there is space again, too late
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(fd, data[: left[0]])
        left[0] -= written
        return written

    path = tmp_path / "j"
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        journal = Journal(str(path), IDENTITY, SIZE, {})
        for item in SUMS.items():
            journal.record(*item)
        journal.close()
    assert path.read_bytes() == RAW[:room]
    assert read_journal(str(path), IDENTITY, SIZE).chunks.items() <= SUMS.items()


def test_short_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
        Journal(str(tmp_path / "j"), IDENTITY, SIZE, SUMS).close()
    assert (tmp_path / "j").read_bytes() == RAW


# -- damage ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(length=st.integers(0, len(RAW)))
@example(length=len(RAW) - 1)
def test_a_journal_cut_anywhere_names_the_whole_lines(folder: Path, length: int) -> None:
    whole = RAW[:length].count(b"\n")
    assert read(RAW[:length], folder) == dict(list(SUMS.items())[: max(0, whole - 1)])


@settings(deadline=None, max_examples=200)
@given(damage=st.lists(st.tuples(st.integers(0, len(RAW) - 1), st.integers(1, 255)), min_size=1, max_size=5))
def test_flipped_bytes_do_no_harm(folder: Path, damage: list[tuple[int, int]]) -> None:
    raw = bytearray(RAW)
    for offset, mask in damage:
        raw[offset] ^= mask
    found = read(bytes(raw), folder)
    assert_usable(found)
    header = RAW.index(b"\n") + 1
    if raw[:header] != RAW[:header]:
        assert found == {}
    for item in found.items():  # nothing is made up: it stands there
        assert re.search(rb"\n0*%d %b\n" % (item[0], item[1].encode()), raw)


@settings(deadline=None, max_examples=200)
@given(
    lines=st.lists(
        st.tuples(
            st.integers(1, CHUNKS),
            st.binary(max_size=60).map(lambda line: line.replace(b"\n", b""))
            | st.from_regex(rb"[0-9 -]{0,12} [0-9a-fA-F]{30,34}", fullmatch=True),
        ),
        max_size=6,
    )
)
@example(lines=[(1, b"12 " + b"0" * 32)])
@example(lines=[(1, b"-1 " + b"0" * 32)])
@example(lines=[(1, b"999999999 " + b"0" * 32)])
@example(lines=[(1, b"9999999999 " + b"0" * 32)])
@example(lines=[(1, "\u0661 ".encode() + b"0" * 32)])
@example(lines=[(1, b"0 " + b"A" * 32)])
@example(lines=[(1, b"1 " + b"0" * 32 + b"\r")])
def test_inserted_lines_are_passed_over(folder: Path, lines: list[tuple[int, bytes]]) -> None:
    rows = RAW.split(b"\n")
    for at, line in lines:
        rows.insert(at, line)
    found = read(b"\n".join(rows), folder)
    assert_usable(found)
    valid = re.compile(rb"[0-9]{1,9} [0-9a-f]{32}")
    if not any(valid.fullmatch(line) for _, line in lines):
        assert found == SUMS


@settings(deadline=None)
@given(raw=st.binary(max_size=300))
def test_any_bytes_are_no_journal(folder: Path, raw: bytes) -> None:
    assert read(raw, folder) == {}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"version":1', '"version":2'), ("16777216", "8388608"), (str(SIZE), str(SIZE + 1)),
        (IDENTITY.hex, Digest.of(b"b").hex), ('{"chunk', '{ "chunk'), ("\n", "\r\n"), ("{", "\n{"), ("{", "\ufeff{"),
    ],
)  # fmt: skip
def test_another_header_is_of_other_bytes(tmp_path: Path, old: str, new: str) -> None:
    assert read(RAW, tmp_path) == SUMS
    assert read(RAW.decode().replace(old, new, 1).encode(), tmp_path) == {}


def test_other_bytes_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(RAW)
    assert read_journal(str(path), IDENTITY, SIZE).chunks == SUMS
    assert read_journal(str(path), Digest.of(b"b"), SIZE).chunks == {}
    for size in (0, 1, SIZE - 1, SIZE + 1):
        assert read_journal(str(path), IDENTITY, size).chunks == {}


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    path.write_bytes(RAW)
    os.truncate(path, 2**40)
    monkeypatch.setattr(os, "pread", lambda *_: pytest.fail("it was read"))
    assert read_journal(str(path), IDENTITY, SIZE).chunks == {}


@pytest.mark.parametrize("kind", ["missing", "fifo", "link", "directory", "no folder"])
def test_what_is_no_plain_file_is_no_journal(tmp_path: Path, kind: str) -> None:
    path, real = tmp_path / "j", tmp_path / "real"
    real.write_bytes(RAW)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(real)
    elif kind == "directory":
        path.mkdir()
    elif kind == "no folder":
        path = tmp_path / "none" / "j"
    before = set(os.listdir("/proc/self/fd"))
    assert read_journal(str(path), IDENTITY, SIZE).chunks == {}
    assert set(os.listdir("/proc/self/fd")) == before


def test_an_empty_blob_has_no_chunks(tmp_path: Path) -> None:
    path = str(tmp_path / "j")
    Journal(path, IDENTITY, 0, {0: "0" * 32}).close()
    assert read_journal(path, IDENTITY, 0).chunks == {}
