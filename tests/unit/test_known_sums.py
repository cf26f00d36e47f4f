"""Chunk sums that a trusted tier recorded: each chunk is checked as it comes, and a wrong one is read again alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelstore.digest import CHUNK_SIZE, ChunkSums, Digest
from modelstore.errors import BlobCorrupt, SourceCorrupt
from modelstore.progress import ProgressUpdate
from modelstore.sources.base import RangesIgnored, SourceFile
from modelstore.tiers.memory import MemoryTier
from modelstore.transfer import staging as staging_module
from modelstore.transfer.download import Job, download
from tests.unit.engine import CHUNK, Reader, body_of, chunk, flipped, make_tier, shrink_chunks, sum_of

BODY = body_of(10 * CHUNK - 7)
DIGEST = Digest.of(BODY)
WRONG = flipped(BODY, 3 * CHUNK + 5)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_chunks(monkeypatch)


def sums(body: bytes = BODY, chunk_size: int = CHUNK) -> ChunkSums:
    return ChunkSums.of([body], chunk_size)


def wrong(times: int, *, start: int = 3 * CHUNK) -> Reader:
    """Flips a byte of a chunk, so many times."""

    def script(reader: Reader, begin: int, stop: int) -> Iterator[bytes] | None:
        if begin == start and reader.asked(start) <= times:
            return iter([flipped(BODY[begin:stop], 5)])
        return None

    return Reader(BODY, script)


def job(reader: Reader, *, size: int = len(BODY), ranges: bool = True, **fields: Any) -> Job:
    fields.setdefault("expected", DIGEST)
    fields.setdefault("sums", sums())
    return Job(SourceFile("m.gguf", size, ranges=ranges), reader, **fields)


def bring(made: Job, home: Any = None, **options: Any) -> None:
    (brought,) = download([made], home or MemoryTier(), connections=4, **options)
    assert brought.digest == DIGEST


def test_a_bad_chunk_is_read_again_alone() -> None:
    reader, home = wrong(1), MemoryTier()
    bring(job(reader), home)
    assert sorted(reader.reads) == sorted([(c, min(c + CHUNK, len(BODY))) for c in range(0, len(BODY), CHUNK)] + [
        (3 * CHUNK, 4 * CHUNK)
    ])  # fmt: skip
    assert b"".join(home.open_range(DIGEST, 0, len(BODY))) == BODY
    assert home.read_sums(DIGEST) == sums()


@pytest.mark.parametrize(("tier", "kind"), [(None, SourceCorrupt), ("pvc", BlobCorrupt)])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_chunk_that_is_bad_twice_is_whose_it_is(tier: str | None, kind: type[Exception], ranges: bool) -> None:
    """And says which sum it has and which it should have."""
    reader = wrong(9) if ranges else Reader(WRONG)
    home = MemoryTier()
    with pytest.raises(kind) as caught:
        bring(job(reader, tier=tier, ranges=ranges), home)
    actual, expected = sum_of(chunk(WRONG, 3)), sum_of(chunk(BODY, 3))
    assert re.search(rf"chunk 3 of m\.gguf .*{actual}.*{expected}", str(caught.value))
    assert not ranges or reader.asked(3 * CHUNK) == 2
    assert getattr(caught.value, "tier", None) == tier
    assert not list(home.walk())


def test_a_bad_chunk_in_a_file_of_one() -> None:
    body = BODY[:100]
    reads = [flipped(body, 0), body]
    reader = Reader(body, lambda *_: iter([reads.pop(0)]))
    made = Job(SourceFile("m", 100), reader, Digest.of(body), sums=sums(body))
    (brought,) = download([made], MemoryTier())
    assert brought.digest == Digest.of(body)
    assert reader.reads == [(0, 100)] * 2


def test_bytes_of_a_bad_chunk_are_not_counted_twice() -> None:
    updates: list[ProgressUpdate] = []
    bring(job(wrong(1)), progress=updates.append)
    assert updates[-1].bytes_done == len(BODY)
    assert max(update.bytes_done for update in updates) == len(BODY)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that SHA-256 was run over, of staged files."""
    sizes: list[int] = []

    class Counting:
        def __init__(self) -> None:
            self._inner = hashlib.sha256()

        def update(self, data: bytes) -> None:
            sizes.append(len(data))
            self._inner.update(data)

        def hexdigest(self) -> str:
            return self._inner.hexdigest()

    class Hashlib:
        sha256 = Counting

    monkeypatch.setattr(staging_module, "hashlib", Hashlib)
    return sizes


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("ranges", [False, True])
def test_sums_make_sha_256_unnecessary_unless_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[int], full: bool, ranges: bool
) -> None:
    home = make_tier(tmp_path, monkeypatch)
    bring(job(Reader(BODY), full=full, ranges=ranges), home)
    assert sum(hashed) == (len(BODY) if full else 0)
    assert (tmp_path / "blobs" / DIGEST.filename).read_bytes() == BODY
    assert home.read_sums(DIGEST) == sums()


def test_in_full_wrong_sums_do_not_hide_wrong_bytes() -> None:
    with pytest.raises(SourceCorrupt, match=DIGEST.hex):
        bring(job(Reader(WRONG), sums=sums(WRONG), full=True))


@pytest.mark.parametrize(
    "ignored",
    [
        ChunkSums(len(BODY), ("0" * 32,), CHUNK_SIZE), ChunkSums(1, ("0" * 32,), CHUNK),
        ChunkSums(len(BODY) + CHUNK, ("0" * 32,) * 11, CHUNK), ChunkSums(len(BODY), ("0" * 32,) * 20, CHUNK // 2), None,
    ],
)  # fmt: skip
def test_sums_of_other_chunks_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[int], ignored: ChunkSums | None
) -> None:
    home = make_tier(tmp_path, monkeypatch)
    bring(job(Reader(BODY), sums=ignored), home)
    assert sum(hashed) == len(BODY)
    assert home.read_sums(DIGEST) == sums()


def test_sums_without_a_digest_prove_nothing() -> None:
    home = MemoryTier()
    bring(job(Reader(BODY), expected=None, sums=sums(WRONG)), home)
    assert home.read_sums(DIGEST) == sums()


def test_ranges_that_are_ignored_are_checked_in_one_stream() -> None:
    def script(_: Reader, start: int, stop: int) -> Iterator[bytes] | None:
        if (start, stop) != (0, len(BODY)):
            raise RangesIgnored
        return None

    bring(job(Reader(BODY, script)))
    bad = Reader(WRONG, script)
    with pytest.raises(SourceCorrupt, match="chunk 3"):
        bring(job(bad))
    assert bad.asked(0) <= 2 + CHUNK


def test_a_read_that_breaks_off_is_not_a_bad_chunk() -> None:
    """The sum is that of the whole chunk, however many reads it took."""
    reader = Reader(BODY, lambda made, start, stop: made.serve(start, min(stop, start + 1500)))
    bring(job(reader))
    assert sum(min(stop, start + 1500) - start for start, stop in reader.reads) == len(BODY)
