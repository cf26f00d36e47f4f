"""What every tier must do."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from modelstore.digest import CHUNK_SIZE, ChunkSums, Digest
from modelstore.errors import BlobCorrupt, BlobNotFound
from modelstore.manifest import Ref
from modelstore.source_url import cache_key
from modelstore.tiers.base import SupportsDelete, SupportsLocalPath, SupportsVerify, Tier

__all__ = ["TierTests"]

_SOURCE = "https://example.com/model.gguf"
_BODY = random.Random(0).randbytes(3 * 1024 * 1024 + 7)  # noqa: S311
_DIGEST = Digest.of(_BODY)


def _store(tier: Tier, body: bytes, expected: Digest | None = None) -> Digest:
    with tier.ingest(len(body), expected) as ingest:
        ingest.write_at(0, body)
        return ingest.commit(ChunkSums.of([body]))


def _read(tier: Tier, digest: Digest, start: int, stop: int) -> bytes:
    return b"".join(tier.open_range(digest, start, stop))


def _ref(digest: Digest, *, revision: str | None = None) -> Ref:
    return Ref(_SOURCE, digest, revision, {"model.gguf": 'etag:"1"'}, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")


class TierTests:
    """Fixtures to give: ``tier``, an empty writable tier. Override ``damage`` if blobs can be verified in place."""

    def damage(self, tier: Tier, digest: Digest) -> None:
        """Change a stored blob's bytes behind the tier's back."""
        pytest.skip("this suite was not told how to damage a blob")

    # -- writing ---------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("expected", [None, _DIGEST], ids=["unknown digest", "known digest"])
    def test_committed_blob_is_there(self, tier: Tier, expected: Digest | None) -> None:
        assert _store(tier, _BODY, expected) == _DIGEST
        assert tier.stat(_DIGEST).size == len(_BODY)
        assert _read(tier, _DIGEST, 0, len(_BODY)) == _BODY
        assert [info.digest for info in tier.walk()] == [_DIGEST]
        assert tier.missing([_DIGEST]) == set()

    def test_nothing_is_visible_before_commit(self, tier: Tier) -> None:
        with tier.ingest(len(_BODY), _DIGEST) as ingest:
            ingest.write_at(0, _BODY)
            ingest.hash_to(len(_BODY))
            assert ingest.digest == _DIGEST
            self._assert_empty(tier)
            ingest.commit(ChunkSums.of([_BODY]))
        assert tier.missing([_DIGEST]) == set()

    def test_leaving_without_commit_discards(self, tier: Tier) -> None:
        with tier.ingest(len(_BODY), _DIGEST) as ingest:
            ingest.write_at(0, _BODY)
        self._assert_empty(tier)

    def test_an_error_discards(self, tier: Tier) -> None:
        with pytest.raises(ZeroDivisionError), tier.ingest(4, None) as ingest:
            ingest.write_at(0, b"blob")
            raise ZeroDivisionError
        assert list(tier.walk()) == []

    def test_wrong_bytes_are_refused(self, tier: Tier) -> None:
        with pytest.raises(BlobCorrupt, match=_DIGEST.hex) as caught:
            _store(tier, b"x" + _BODY[1:], _DIGEST)
        assert caught.value.tier == tier.name
        self._assert_empty(tier)

    def test_missing_bytes_are_refused(self, tier: Tier) -> None:
        with pytest.raises(BlobCorrupt), tier.ingest(len(_BODY), _DIGEST) as ingest:
            ingest.write_at(0, _BODY[:-1])
            ingest.commit(ChunkSums.of([_BODY]))
        self._assert_empty(tier)

    def test_sums_of_another_size_are_refused(self, tier: Tier) -> None:
        with pytest.raises(BlobCorrupt), tier.ingest(len(_BODY), None) as ingest:
            ingest.write_at(0, _BODY)
            ingest.commit(ChunkSums.of([_BODY[:-1]]))
        self._assert_empty(tier)

    @pytest.mark.parametrize(("offset", "data"), [(-1, b"x"), (4, b"x"), (0, b"xxxxx"), (3, b"xx")])
    def test_bytes_outside_the_size_are_refused(self, tier: Tier, offset: int, data: bytes) -> None:
        with tier.ingest(4, None) as ingest, pytest.raises(ValueError, match="outside"):
            ingest.write_at(offset, data)

    def test_writes_in_any_order_from_any_thread(self, tier: Tier) -> None:
        pieces = [(start, _BODY[start : start + 100_003]) for start in range(0, len(_BODY), 100_003)]
        random.Random(1).shuffle(pieces)  # noqa: S311
        with tier.ingest(len(_BODY), _DIGEST) as ingest, ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda piece: ingest.write_at(*piece), pieces))
            assert ingest.commit(ChunkSums.of([_BODY])) == _DIGEST
        assert _read(tier, _DIGEST, 0, len(_BODY)) == _BODY

    def test_digest_is_not_given_before_all_is_hashed(self, tier: Tier) -> None:
        with tier.ingest(4, None) as ingest:
            ingest.write_at(0, b"blob")
            ingest.hash_to(2)
            with pytest.raises(ValueError, match="2 of 4"):
                _ = ingest.digest
            ingest.hash_to(4)
            assert ingest.digest == Digest.of(b"blob")

    def test_empty_blob(self, tier: Tier) -> None:
        digest = _store(tier, b"")
        assert digest == Digest.of(b"")
        assert tier.stat(digest).size == 0
        assert _read(tier, digest, 0, 0) == b""

    def test_the_same_blob_again_is_no_error(self, tier: Tier) -> None:
        assert _store(tier, _BODY) == _store(tier, _BODY, _DIGEST)
        assert len(list(tier.walk())) == 1

    def test_the_same_blob_from_many_threads(self, tier: Tier) -> None:
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: _store(tier, _BODY), range(16))) == {_DIGEST}
        assert _read(tier, _DIGEST, 0, len(_BODY)) == _BODY

    def test_sums_come_back(self, tier: Tier) -> None:
        body = bytes(CHUNK_SIZE) + b"more"
        digest = _store(tier, body)
        assert tier.read_sums(digest) == ChunkSums.of([body])
        assert tier.read_sums(_DIGEST) is None

    # -- reading ---------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("start", "stop"), [(0, 1), (1, 1), (0, 2**20), (5, 2**20 + 6), (len(_BODY) - 1, len(_BODY)), (0, len(_BODY))]
    )
    def test_ranges(self, tier: Tier, start: int, stop: int) -> None:
        _store(tier, _BODY)
        pieces = list(tier.open_range(_DIGEST, start, stop))
        assert b"".join(pieces) == _BODY[start:stop]
        assert all(0 < len(piece) <= 2**20 for piece in pieces)

    def test_what_is_not_there(self, tier: Tier) -> None:
        with pytest.raises(BlobNotFound, match=_DIGEST.hex) as caught:
            tier.stat(_DIGEST)
        assert isinstance(caught.value, FileNotFoundError)
        assert caught.value.tier == tier.name
        with pytest.raises(BlobNotFound):
            _read(tier, _DIGEST, 0, 1)

    def test_missing_in_one_call(self, tier: Tier) -> None:
        there, gone = _store(tier, b"there"), Digest.of(b"gone")
        assert tier.missing([there, gone, _DIGEST]) == {gone, _DIGEST}
        assert tier.missing([]) == set()

    # -- refs ------------------------------------------------------------------------------------------------------

    def test_ref_comes_back(self, tier: Tier) -> None:
        key, ref = cache_key(_SOURCE), _ref(_DIGEST, revision="main")
        assert tier.read_ref(key) is None
        tier.write_ref(key, ref)
        assert tier.read_ref(key) == ref
        assert list(tier.refs()) == [(key, ref)]

    def test_ref_is_replaced(self, tier: Tier) -> None:
        key = cache_key(_SOURCE)
        tier.write_ref(key, _ref(_DIGEST))
        tier.write_ref(key, _ref(Digest.of(b"newer")))
        assert tier.read_ref(key) == _ref(Digest.of(b"newer"))
        assert len(list(tier.refs())) == 1

    # -- what only some can ----------------------------------------------------------------------------------------

    def test_delete(self, tier: Tier) -> None:
        if not isinstance(tier, SupportsDelete):
            pytest.skip("this tier cannot delete")
        key = cache_key(_SOURCE)
        _store(tier, _BODY)
        tier.write_ref(key, _ref(_DIGEST))
        for _ in range(2):
            tier.delete(_DIGEST)
            tier.delete_ref(key)
        assert tier.missing([_DIGEST]) == {_DIGEST}
        assert tier.read_sums(_DIGEST) is None
        assert tier.read_ref(key) is None
        assert list(tier.named_manifests()) == []

    def test_verify_and_quarantine(self, tier: Tier) -> None:
        if not isinstance(tier, SupportsVerify):
            pytest.skip("this tier cannot verify in place")
        _store(tier, _BODY)
        tier.verify(_DIGEST)
        self.damage(tier, _DIGEST)
        with pytest.raises(BlobCorrupt):
            tier.verify(_DIGEST)
        tier.quarantine(_DIGEST)
        assert tier.missing([_DIGEST]) == {_DIGEST}
        with pytest.raises(BlobNotFound):
            tier.verify(_DIGEST)
        _store(tier, _BODY, _DIGEST)
        tier.verify(_DIGEST)

    def test_local_path(self, tier: Tier) -> None:
        if not isinstance(tier, SupportsLocalPath):
            pytest.skip("this tier has no local files")
        _store(tier, _BODY)
        with open(tier.local_path(_DIGEST), "rb") as file:
            assert file.read() == _BODY
        with pytest.raises(BlobNotFound):
            tier.local_path(Digest.of(b"gone"))

    def _assert_empty(self, tier: Tier) -> None:
        assert tier.missing([_DIGEST]) == {_DIGEST}
        assert list(tier.walk()) == []
