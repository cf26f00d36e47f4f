"""A staged file that goes on with what an earlier attempt left, and what it leaves itself."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from modelstore.digest import ChunkSums, Digest
from modelstore.errors import BlobCorrupt, TierUnavailable
from modelstore.tiers.directory import DirectoryTier
from modelstore.transfer import limits
from modelstore.transfer import staging as staging_module
from modelstore.transfer.journal import read_journal
from modelstore.transfer.leftovers import JOURNAL, STAGED
from modelstore.transfer.staging import StagedFile
from tests.unit.engine import (
    CHUNK,
    IDENTITY,
    body_of,
    chunk,
    flipped,
    leave,
    make_tier,
    open_files,
    shrink_chunks,
    staging,
    sum_of,
)

BODY = body_of(6 * CHUNK - 100)
CHUNKS = 6
DIGEST = Digest.of(BODY)
SUMS = {index: sum_of(chunk(BODY, index)) for index in range(CHUNKS)}


class Killed(Exception):
    """The end of an attempt."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_chunks(monkeypatch)


@pytest.fixture(autouse=True)
def closed_files() -> Iterator[None]:
    before = open_files()
    yield
    assert open_files() <= before


@pytest.fixture(params=[True, False], ids=["local", "not local"])
def local(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool) -> DirectoryTier:
    return make_tier(tmp_path, monkeypatch, local=local)


def span(index: int) -> tuple[int, int]:
    return index * CHUNK, min((index + 1) * CHUNK, len(BODY))


def stage(file: StagedFile, *indexes: int, body: bytes = BODY) -> None:
    for index in indexes:
        file.write_at(index * CHUNK, chunk(body, index))
        file.record(index, sum_of(chunk(body, index)))


def recall(file: StagedFile) -> dict[int, str]:
    found = {index: file.recall(index, *span(index)) for index in range(CHUNKS)}
    return {index: promised for index, promised in found.items() if promised}


def attempt(tier: DirectoryTier, *indexes: int, keep: bool = True) -> None:
    """One that stages chunks and is cut off."""
    with suppress(Killed), tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file:
        recall(file)
        stage(file, *indexes)
        if keep:
            file.keep()
        raise Killed


def names(root: Path) -> list[str]:
    """What is left there, but for notes that a file was published: they go when a ref is written."""
    left = (Path(staging(root), name) for name in os.listdir(staging(root)))
    return sorted(file.name for file in left if b"\ndone " not in file.read_bytes())


def inode(file: StagedFile) -> int:
    return os.fstat(file._fd).st_ino


# -- going on ----------------------------------------------------------------------------------------------------------


def test_the_same_file_is_gone_on_with_where_a_lock_proves_death(
    tmp_path: Path, tier: DirectoryTier, local: bool
) -> None:
    left = leave(tmp_path, BODY, {index: SUMS[index] for index in (0, 2, 5)})
    number = left.stat().st_ino
    with tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file:
        assert (inode(file) == number) is local
        assert left.exists() is not local
        assert recall(file) == {index: SUMS[index] for index in (0, 2, 5)}
        assert recall(file) == {}  # each is promised once: what is written now is another matter
        assert os.pread(file._fd, CHUNK, 0) == chunk(BODY, 0)
        stage(file, 1, 3, 4)
        assert file.commit(ChunkSums.of([BODY])) == DIGEST
    assert (tmp_path / "blobs" / DIGEST.filename).read_bytes() == BODY
    assert names(tmp_path) == []


def test_a_donor_is_only_read_until_the_blob_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    tier = make_tier(tmp_path, monkeypatch, local=False)
    left = leave(tmp_path, BODY, {0: SUMS[0], 1: "0" * 32})
    left.chmod(0o400)
    journal = left.with_suffix(JOURNAL)
    before = left.stat().st_mtime_ns, left.stat().st_mode, journal.read_bytes()
    with suppress(Killed), tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file:
        assert recall(file) == {0: SUMS[0]}
        assert inode(file) != left.stat().st_ino
        stage(file, 1, 2)
        raise Killed
    assert (left.stat().st_mtime_ns, left.stat().st_mode, journal.read_bytes()) == before
    assert left.read_bytes() == BODY
    assert len(names(tmp_path)) == 2


def test_a_chunk_is_recalled_only_if_it_still_has_its_sum(tmp_path: Path, tier: DirectoryTier) -> None:
    body = flipped(BODY, 0, 3 * CHUNK - 1, len(BODY) - 1)
    leave(tmp_path, body, SUMS)
    with tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file:
        assert recall(file) == {index: SUMS[index] for index in (1, 3, 4)}
        stage(file, 0, 2, 5)
        assert file.commit(ChunkSums.of([BODY])) == DIGEST


@pytest.mark.parametrize("length", [0, 1, CHUNK, 2 * CHUNK + 1, len(BODY) - 1])
def test_what_is_shorter_than_its_journal_says(tmp_path: Path, tier: DirectoryTier, length: int) -> None:
    """The power went after the journal was on the disk, and before the bytes were."""
    left = leave(tmp_path, BODY, SUMS)
    os.truncate(left, length)
    with tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file:
        assert recall(file) == {index: SUMS[index] for index in range(length // CHUNK)}


def test_a_sum_of_half_a_chunk_is_not_that_of_a_chunk(tmp_path: Path, tier: DirectoryTier) -> None:
    left = leave(tmp_path, BODY, {0: sum_of(BODY[:100])})
    os.truncate(left, 100)
    with tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file:
        assert recall(file) == {}


def test_holes_are_not_recalled(tmp_path: Path, tier: DirectoryTier) -> None:
    left = leave(tmp_path, BODY, SUMS)
    os.truncate(left, 0)
    os.truncate(left, len(BODY))
    with tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file:
        assert recall(file) == {}


def test_a_disk_that_cannot_read_it_back_costs_bytes_only(
    tmp_path: Path, tier: DirectoryTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path, BODY, SUMS)
    real = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        if offset // CHUNK == 2:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, size, offset)

    with tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file, monkeypatch.context() as patch:
        patch.setattr(os, "pread", pread)
        assert set(recall(file)) == {0, 1, 3, 4, 5}


def test_every_attempt_adds_to_the_last(tmp_path: Path, tier: DirectoryTier) -> None:
    attempt(tier, 0, 1)
    attempt(tier, 3)
    attempt(tier)
    with tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file:
        assert set(recall(file)) == {0, 1, 3}


@pytest.mark.parametrize("size", [len(BODY) - 1, len(BODY) + 1, 3 * CHUNK])
def test_a_file_of_another_size_is_not_gone_on_with(tmp_path: Path, tier: DirectoryTier, size: int) -> None:
    leave(tmp_path, BODY)
    with tier.resume(size, None, IDENTITY, keep_cache=True) as file:
        assert recall(file) == {}
        assert os.fstat(file._fd).st_size == 0
    with tier.resume(len(BODY), None, None, keep_cache=True) as file:
        assert recall(file) == {}
    assert len(names(tmp_path)) == 2


def test_two_at_once_have_a_file_each(tmp_path: Path, tier: DirectoryTier) -> None:
    leave(tmp_path, BODY, {0: SUMS[0]})
    with tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as one:
        recall(one)
        with tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as other:
            assert inode(one) != inode(other)
            stage(other, *range(CHUNKS))
            assert other.commit(ChunkSums.of([BODY])) == DIGEST
        published = (tmp_path / "blobs" / DIGEST.filename).stat().st_ino
        assert inode(one) != published
        stage(one, *range(CHUNKS))
        assert one.commit(ChunkSums.of([BODY])) == DIGEST
    assert names(tmp_path) == []


def test_a_fuller_one_in_use_does_not_hide_one_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = make_tier(tmp_path, monkeypatch)
    busy, free = leave(tmp_path, BODY), leave(tmp_path, BODY, {0: SUMS[0]})
    number = free.stat().st_ino
    with busy.open("rb") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        with tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file:
            assert inode(file) == number
            assert set(recall(file)) == {0}
    assert busy.exists()


def test_killed_while_it_took_over_the_old_pair_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = make_tier(tmp_path, monkeypatch)
    leave(tmp_path, BODY)
    before = names(tmp_path)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(staging_module, "take_over", killed)
        with pytest.raises(Killed), tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True):
            pass
    assert names(tmp_path) == before
    with tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file:
        assert recall(file) == SUMS


def test_a_leftover_that_was_replaced_in_between_costs_bytes_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = make_tier(tmp_path, monkeypatch)
    leave(tmp_path, BODY)
    real = os.rename

    def rename(source: str, target: str) -> None:
        if source.endswith(STAGED) and target.endswith(STAGED):
            real(source, tmp_path / "aside")
            Path(source).write_bytes(b"another's")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file:
        stage(file, *range(CHUNKS))
        assert file.commit(ChunkSums.of([BODY])) == DIGEST


# -- what is left ------------------------------------------------------------------------------------------------------


def test_only_what_is_kept_and_recorded_is_left(tmp_path: Path, tier: DirectoryTier) -> None:
    attempt(tier, 0, keep=False)
    assert names(tmp_path) == []
    attempt(tier)
    assert names(tmp_path) == []
    with suppress(Killed), tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file:
        file.write_at(0, BODY)  # and nothing recorded
        file.keep()
        raise Killed
    assert names(tmp_path) == []
    attempt(tier, 4)
    (journal, staged) = names(tmp_path)
    assert (staged.removesuffix(STAGED), journal[:32]) == (journal.removesuffix(JOURNAL), IDENTITY.hex[:32])
    assert read_journal(f"{staging(tmp_path)}/{journal}", IDENTITY, len(BODY)).chunks == {4: SUMS[4]}


def test_without_an_identity_nothing_is_left(tmp_path: Path, tier: DirectoryTier) -> None:
    with suppress(Killed), tier.resume(len(BODY), DIGEST, None, keep_cache=True) as file:
        stage(file, 0)
        file.keep()
        raise Killed
    assert names(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "rename", "fchmod"])
def test_after_a_commit_that_failed_nothing_is_kept(
    tmp_path: Path, tier: DirectoryTier, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Above all after a failed fsync: the bytes may be in memory only, and a second one would claim success."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(TierUnavailable), tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file:
        stage(file, *range(CHUNKS))
        file.keep()
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            file.commit(ChunkSums.of([BODY]))
    assert names(tmp_path) == []


def test_wrong_bytes_are_not_kept(tmp_path: Path, tier: DirectoryTier) -> None:
    wrong = flipped(BODY, 9)
    with pytest.raises(BlobCorrupt), tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file:
        stage(file, *range(CHUNKS), body=wrong)
        file.keep()
        file.commit(ChunkSums.of([wrong]))
    assert names(tmp_path) == []
    assert list((tmp_path / "blobs").iterdir()) == [tmp_path / "blobs" / Digest.of(b"").filename]


def test_keep_after_a_commit_keeps_nothing(tmp_path: Path, tier: DirectoryTier) -> None:
    with tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file:
        stage(file, *range(CHUNKS))
        file.commit(ChunkSums.of([BODY]))
        file.keep()
    assert names(tmp_path) == []
    assert tier.missing([DIGEST]) == set()


def test_a_journal_that_cannot_be_written_is_no_failure(
    tmp_path: Path, tier: DirectoryTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file, monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        stage(file, *range(CHUNKS))
        patch.undo()
        assert file.commit(ChunkSums.of([BODY])) == DIGEST


# -- publishing --------------------------------------------------------------------------------------------------------


@pytest.fixture
def preads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all reads of staged files."""
    sizes: list[int] = []
    real = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        sizes.append(len(real(fd, size, offset)))
        return real(fd, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    return sizes


def test_what_is_verified_already_is_not_read_again(tmp_path: Path, tier: DirectoryTier, preads: list[int]) -> None:
    with tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file:
        stage(file, *range(CHUNKS))
        assert file.commit(ChunkSums.of([BODY]), DIGEST) == DIGEST
    assert preads == []
    assert (tmp_path / "blobs" / DIGEST.filename).read_bytes() == BODY


def test_what_is_not_is_read_once(tier: DirectoryTier, preads: list[int]) -> None:
    with tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file:
        stage(file, *range(CHUNKS))
        file.hash_to(CHUNK)
        file.hash_to(2 * CHUNK)
        assert file.commit(ChunkSums.of([BODY])) == DIGEST
    assert sum(preads) == len(BODY)


def test_a_digest_that_was_verified_must_be_the_expected_one(tmp_path: Path, tier: DirectoryTier) -> None:
    with tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file:
        stage(file, *range(CHUNKS))
        with pytest.raises(BlobCorrupt):
            file.commit(ChunkSums.of([BODY]), Digest.of(b"other"))


def test_a_verified_digest_does_not_excuse_a_part(tmp_path: Path, tier: DirectoryTier) -> None:
    with tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file:
        stage(file, *range(CHUNKS - 1))
        with pytest.raises(BlobCorrupt):
            file.commit(ChunkSums.of([BODY]), DIGEST)
    assert tier.missing([DIGEST]) == {DIGEST}


def test_where_locks_may_lie_a_writer_that_may_live_keeps_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its chunks are copied; the file goes when it was not written for a quarter of an hour."""
    tier = make_tier(tmp_path, monkeypatch, local=False)
    monkeypatch.setattr(limits, "DEAD_AFTER", 900.0)
    attempt(tier, 0, 1)
    for idle in (0.0, 901.0):
        (donor,) = [file for file in staging(tmp_path).iterdir() if file.suffix == ".staged"]
        os.utime(donor, (time.time() - idle,) * 2)
        with tier.resume(len(BODY), DIGEST, IDENTITY, keep_cache=True) as file:
            assert set(recall(file)) == {0, 1}
            stage(file, *range(2, CHUNKS))
            file.commit(ChunkSums(len(BODY), tuple(SUMS[index] for index in range(CHUNKS))))
        assert donor.exists() == (idle == 0.0)
