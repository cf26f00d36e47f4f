"""Space that is left free, and what is refused or given back for it before the first byte is read."""

from __future__ import annotations

import errno
import fcntl
import os
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelstore.config import Reserve, TierConfig, load_config
from modelstore.digest import Digest
from modelstore.errors import ConfigError, NoSpace
from modelstore.sources.base import SourceFile
from modelstore.tiers.directory import DirectoryTier
from modelstore.transfer import limits
from modelstore.transfer.download import Job, download
from tests.unit.engine import CHUNK, IDENTITY, Reader, body_of, chunk, leave, made_old, make_tier, shrink_chunks, sum_of

GIB = 1024**3
TIB = 1024**4
BODY = body_of(8 * CHUNK)
DIGEST = Digest.of(BODY)


# -- what is written in the config -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "size", "free"),
    [
        (0, TIB, 0), ("0", TIB, 0), ("0%", TIB, 0), (1000, TIB, 1000), ("1000", TIB, 1000), ("7B", TIB, 7),
        ("10GiB", TIB, 10 * GIB), ("10Gi", TIB, 10 * GIB), ("10G", TIB, 10 * 10**9), ("10GB", TIB, 10 * 10**9),
        ("1.5KiB", TIB, 1536), ("500 MB", TIB, 500 * 10**6), ("2KB", TIB, 2000), ("2Ti", 4 * TIB, 2 * TIB),
        ("15%", 1000, 150), ("0.5%", 1000, 5), ("100%", 1000, 1000), ("1 %", 1000, 10),
        ("10GiB", GIB, GIB), ("9" * 400 + "T", GIB, GIB),
    ],
    ids=lambda value: repr(value)[:15],
)  # fmt: skip
def test_a_reserve(value: Any, size: int, free: int) -> None:
    assert Reserve.parse(value).of(size) == free


@pytest.mark.parametrize(
    "value",
    ["", "%", "GiB", "-1", -1, "101%", "100.1%", "1e9", "1.5.5G", "5 percent", "10gb", "10gib", "10Pi", "10 G iB",
     "1_000", "+1", ".5G", "5.", " 5", 1.5, True, False, None, [], {}, "inf", "nan", b"5"],
    ids=repr,
)  # fmt: skip
def test_what_is_no_reserve_is_a_config_error(value: Any) -> None:
    with pytest.raises(ConfigError, match="reserve"):
        Reserve.parse(value)


@settings(deadline=None)
@given(value=st.text() | st.integers() | st.floats() | st.none() | st.from_regex(r"\d{1,5}(\.\d)?\s?([KMGT]i?B?|%)?"))
def test_any_value_is_a_reserve_within_the_disk_or_a_config_error(value: Any) -> None:
    try:
        reserve = Reserve.parse(value)
    except ConfigError:
        return
    for size in (0, 1, GIB, 1000 * TIB):
        assert 0 <= reserve.of(size) <= size


def test_the_default_is_a_twentieth_and_at_most_a_gibibyte() -> None:
    assert [Reserve().of(size) for size in (0, 1000, 20 * GIB, 21 * GIB, TIB)] == [0, 50, GIB, GIB, GIB]
    assert TierConfig.parse("/x").reserve == Reserve()


def test_a_reserve_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('tiers = [{location = "/a", reserve = "15%"}, {location = "/b", reserve = 5}, "/c"]')
    assert [tier.reserve.of(1000) for tier in load_config(file, environ={}).tiers] == [150, 5, 50]
    file.write_text('tiers = [{location = "/a", reserve = 0.5}]')
    with pytest.raises(ConfigError, match="reserve"):
        load_config(file, environ={})


# -- a disk ------------------------------------------------------------------------------------------------------------

Statvfs = namedtuple("Statvfs", "f_blocks f_frsize f_bavail")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_chunks(monkeypatch)


@pytest.mark.parametrize(
    ("reserve", "bytes_free"), [(0, 40_000), ("10%", 30_000), (39_000, 1000), ("40%", 0), ("90%", 0), ("100%", 0)]
)
def test_free_is_what_is_left_before_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserve: Any, bytes_free: int
) -> None:
    asked = []

    def statvfs(path: str) -> Statvfs:
        asked.append(path)
        return Statvfs(100, 1000, 40)

    monkeypatch.setattr(os, "statvfs", statvfs)
    table = {"location": str(tmp_path / "not" / "there"), "reserve": reserve}
    assert DirectoryTier(TierConfig.parse(table)).free_bytes() == bytes_free
    assert asked == [str(tmp_path)]  # the nearest directory that is there


class Disk:
    """So much is free, plus what is given back by removing staged files."""

    def __init__(self, tier: DirectoryTier, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.folder = Path(tier.root, ".modelstore", "ingest")
        self.before = self._staged()
        self.asked = 0
        self._free = free
        monkeypatch.setattr(tier, "free_bytes", self)

    def _staged(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("*.staged"))

    def __call__(self) -> int:
        self.asked += 1
        return self._free + self.before - self._staged()


def job(reader: Reader, body: bytes = BODY, **fields: Any) -> Job:
    fields.setdefault("identity", IDENTITY)
    return Job(SourceFile("m", len(body)), reader, **fields)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DirectoryTier:
    return make_tier(tmp_path, monkeypatch)


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DirectoryTier:
    return make_tier(tmp_path, monkeypatch, local=False)


def test_what_does_not_fit_is_not_begun(home: DirectoryTier, monkeypatch: pytest.MonkeyPatch) -> None:
    readers = Reader(BODY), Reader(BODY[:10])
    jobs = [job(readers[0]), job(readers[1], BODY[:10])]
    disk = Disk(home, monkeypatch, len(BODY) + 9)
    with pytest.raises(NoSpace, match=r"32\.0 KiB are needed and 32\.0 KiB are free") as caught:
        download(jobs, home)
    assert (caught.value.errno, caught.value.tier) == (errno.ENOSPC, "home")
    assert [reader.reads for reader in readers] == [[], []]
    assert list(disk.folder.iterdir()) == []
    Disk(home, monkeypatch, len(BODY) + 10)
    assert len(download(jobs, home)) == 2


def test_what_is_there_already_need_not_fit(
    tmp_path: Path, home: DirectoryTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path, BODY, {index: sum_of(chunk(BODY, index)) for index in range(5)})
    Disk(home, monkeypatch, 3 * CHUNK - 1)
    with pytest.raises(NoSpace, match=r"12\.0 KiB are needed"):
        download([job(Reader(BODY))], home)
    Disk(home, monkeypatch, 3 * CHUNK)
    (brought,) = download([job(Reader(BODY))], home)
    assert brought.resumed == 5 * CHUNK


def test_where_it_is_copied_it_must_fit_again(
    tmp_path: Path, remote: DirectoryTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path, BODY)
    Disk(remote, monkeypatch, len(BODY) - 1)
    with pytest.raises(NoSpace):
        download([job(Reader(BODY))], remote)


def test_what_another_process_is_at_is_not_there(
    tmp_path: Path, home: DirectoryTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = leave(tmp_path, BODY)
    Disk(home, monkeypatch, 100)
    reader = Reader(BODY)
    with left.open("rb") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        assert home.resumable(IDENTITY, len(BODY)) == 0
        with pytest.raises(NoSpace):
            download([job(reader)], home)
    assert reader.reads == []


def test_no_more_is_there_than_the_file_has(tmp_path: Path, home: DirectoryTier) -> None:
    body = BODY[: 2 * CHUNK + 1]
    leave(tmp_path, body)
    assert home.resumable(IDENTITY, len(body)) <= len(body)


def test_what_cannot_be_gone_on_with_is_not_there(
    tmp_path: Path, home: DirectoryTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path, BODY)
    Disk(home, monkeypatch, 0)
    stream = Job(SourceFile("m", len(BODY), ranges=False), Reader(BODY), identity=IDENTITY)
    reader = stream.reader
    with pytest.raises(NoSpace):
        download([stream], home)
    assert isinstance(reader, Reader)
    assert reader.reads == []


def test_what_dead_processes_took_is_given_back(
    tmp_path: Path, home: DirectoryTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not what is about to be resumed, and not what somebody is at."""
    own = leave(tmp_path, BODY, {0: sum_of(chunk(BODY, 0))}, age=5)
    other = leave(tmp_path, body_of(6 * CHUNK, 1), identity=Digest.of(b"other"), age=5)
    bare = tmp_path / ".modelstore/ingest/bare.staged"
    bare.write_bytes(bytes(CHUNK))
    made_old(bare, 5)
    busy = leave(tmp_path, body_of(CHUNK, 2), identity=Digest.of(b"busy"), age=5)
    with busy.open("rb") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        Disk(home, monkeypatch, 0)
        (brought,) = download([job(Reader(BODY))], home)
    assert brought.resumed == CHUNK
    assert [path.exists() for path in (own, other, bare, busy)] == [False, False, False, True]


def test_nothing_is_given_back_that_is_not_needed(
    tmp_path: Path, home: DirectoryTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = leave(tmp_path, BODY, identity=Digest.of(b"other"), age=5)
    Disk(home, monkeypatch, len(BODY))
    download([job(Reader(BODY))], home)
    assert other.exists()


def test_where_locks_lie_only_what_is_long_silent_is_given_back(
    tmp_path: Path, remote: DirectoryTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DEAD_AFTER", 900.0)
    young = leave(tmp_path, BODY, identity=Digest.of(b"young"), age=14 * 60)
    old = leave(tmp_path, BODY, identity=Digest.of(b"old"), age=16 * 60)
    Disk(remote, monkeypatch, 0)
    download([job(Reader(BODY))], remote)
    assert (young.exists(), old.exists()) == (True, False)


def test_of_several_that_could_be_resumed_one_is_enough(
    tmp_path: Path, home: DirectoryTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path, BODY, {0: sum_of(chunk(BODY, 0))}, age=5)
    fuller = {index: sum_of(chunk(BODY, index)) for index in range(4)}
    leave(tmp_path, BODY, fuller, age=5)
    Disk(home, monkeypatch, 0)
    (brought,) = download([job(Reader(BODY))], home)
    assert brought.resumed == 4 * CHUNK
