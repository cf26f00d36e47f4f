"""`Digest` is the only way from text to a blob's path; `ChunkSums` notices every accident."""

from __future__ import annotations

import hashlib
import pickle
from itertools import pairwise

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from modelstore.digest import CHUNK_SIZE, ChunkSums, Digest

HEX = hashlib.sha256(b"a model").hexdigest()

# SEC-01, after CVE-2024-37032: what has been passed off as 64 lowercase hexadecimal digits.
NOT_HEX = {
    "empty": "",
    "63 digits": HEX[:63],
    "65 digits": HEX + "0",
    "uppercase": HEX.upper(),
    "mixed case": HEX[:63] + "A",
    "not hexadecimal": HEX[:63] + "g",
    "traversal": "../../x",
    "traversal of the right length": "../" * 21 + "x",
    "absolute": "/" + HEX[1:],
    "NUL": HEX[:63] + "\0",
    "newline after it": HEX + "\n",
    "newline for a digit": HEX[:63] + "\n",
    "space after it": HEX + " ",
    "space before it": " " + HEX,
    "Arabic-Indic digits": "\u0660" * 64,
    "fullwidth digits": "\uff11" * 64,
    "prefixed": "0x" + HEX[2:],
    "underscores": "_".join(HEX[:32]) + "0",
    "colon": f"sha256:{HEX}",
    "minus": f"sha256-{HEX}",
}
NOT_A_DIGEST = {
    **{f"{name} in a digest": f"sha256:{text}" for name, text in NOT_HEX.items()},
    "no algorithm": HEX,
    "no digits": "sha256:",
    "no colon": f"sha256{HEX}",
    "file name": f"sha256-{HEX}",
    "algorithm in upper case": f"SHA256:{HEX}",
    "space before it": f" sha256:{HEX}",
    "newline before it": f"\nsha256:{HEX}",
    "another algorithm of the same length": f"blake3:{HEX}",
    "sha512": f"sha512:{HEX}{HEX}",
    "path after it": f"sha256:{HEX}/../../x",
    "two": f"sha256:{HEX}:{HEX}",
}


@pytest.mark.parametrize("text", NOT_HEX.values(), ids=NOT_HEX)
def test_only_64_lowercase_hexadecimal_digits_make_a_digest(text: str) -> None:
    with pytest.raises(ValueError):
        Digest(text)


@pytest.mark.parametrize("text", NOT_A_DIGEST.values(), ids=NOT_A_DIGEST)
def test_only_the_one_form_is_parsed(text: str) -> None:
    with pytest.raises(ValueError):
        Digest.parse(text)


@pytest.mark.parametrize("hex_digits", NOT_HEX.values(), ids=NOT_HEX)
def test_a_foreign_file_among_the_blobs_is_no_digest(hex_digits: str) -> None:
    assert Digest.from_filename(f"sha256-{hex_digits}") is None


@pytest.mark.parametrize("name", ["", "-", HEX, f"sha256{HEX}", f"sha256:{HEX}", f"SHA256-{HEX}", f"sha256-{HEX}.json"])
def test_a_file_name_of_another_form_is_no_digest(name: str) -> None:
    assert Digest.from_filename(name) is None


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_digest_that_prints_the_same_or_a_value_error(text: str) -> None:
    for candidate in (text, f"sha256:{text}"):
        try:
            digest = Digest.parse(candidate)
        except ValueError:
            continue
        assert str(digest) == candidate


def test_an_error_message_does_not_repeat_megabytes() -> None:
    with pytest.raises(ValueError) as caught:
        Digest.parse("x" * 1_000_000)
    assert len(str(caught.value)) < 300


@settings(deadline=None)
@given(st.binary())
def test_forms_of_a_digest(data: bytes) -> None:
    digest = Digest.of(data)
    assert digest.hex == hashlib.sha256(data).hexdigest()
    assert str(digest) == f"sha256:{digest.hex}"
    assert digest.filename == f"sha256-{digest.hex}"
    assert (
        Digest.parse(str(digest))
        == Digest.from_filename(digest.filename)
        == pickle.loads(pickle.dumps(digest))
        == digest
    )
    assert len({digest, Digest(digest.hex)}) == 1


def test_a_digest_cannot_be_changed_after_the_check() -> None:
    with pytest.raises(AttributeError):
        Digest(HEX).hex = "../../x"  # type: ignore[misc]


# -- chunk sums --------------------------------------------------------------------------------------------------------


def xxh3(data: bytes, chunk_size: int) -> tuple[str, ...]:
    return tuple(xxhash.xxh3_128_hexdigest(data[at : at + chunk_size]) for at in range(0, len(data), chunk_size))


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [b"", *(data[start:stop] for start, stop in pairwise(edges))]


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(1, 64), st.lists(st.integers(0, 300)))
def test_sums_are_those_of_the_chunks_however_the_bytes_are_cut(data: bytes, chunk_size: int, cuts: list[int]) -> None:
    sums = ChunkSums.of(pieces_of(data, cuts), chunk_size)
    assert sums == ChunkSums(len(data), xxh3(data, chunk_size), chunk_size)
    assert sums.match(pieces_of(data, cuts[1:]))


def test_the_chunk_is_16_mib() -> None:
    assert CHUNK_SIZE == 16 * 1024 * 1024
    sums = ChunkSums.of([bytes(CHUNK_SIZE), b"x"])
    assert sums.chunks == (xxhash.xxh3_128_hexdigest(bytes(CHUNK_SIZE)), xxhash.xxh3_128_hexdigest(b"x"))


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=100), st.integers(1, 16), st.data())
def test_one_flipped_bit_is_noticed(data: bytes, chunk_size: int, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(data) * 8 - 1))
    flipped = bytearray(data)
    flipped[at // 8] ^= 1 << at % 8
    assert not ChunkSums.of([data], chunk_size).match([bytes(flipped)])


@settings(deadline=None)
@given(st.binary(max_size=100), st.integers(1, 16), st.binary(min_size=1, max_size=33))
def test_another_length_is_noticed(data: bytes, chunk_size: int, more: bytes) -> None:
    assert not ChunkSums.of([data], chunk_size).match([data, more])
    assert not ChunkSums.of([data, more], chunk_size).match([data])


def test_chunks_in_another_order_are_noticed() -> None:
    sums = ChunkSums.of([b"aaaabbbbcc"], 4)
    assert not sums.match([b"bbbbaaaacc"])
    assert sums.match([b"aaaabbbbcc"])


@pytest.mark.parametrize(
    ("size", "chunks", "chunk_size"),
    [
        (-1, (), 4),
        (0, ("0" * 32,), 4),
        (4, (), 4),
        (5, ("0" * 32,), 4),
        (4, ("0" * 32,) * 2, 4),
        (4, ("0" * 31,), 4),
        (4, ("0" * 31 + "F",), 4),
        (4, ("0" * 32 + "\n",), 4),
        (4, ("\u0660" * 32,), 4),
        (4, ("0" * 32,), 0),
        (4, ("0" * 32,), -4),
    ],
)
def test_sums_that_do_not_cover_the_blob_are_refused(size: int, chunks: tuple[str, ...], chunk_size: int) -> None:
    with pytest.raises(ValueError):
        ChunkSums(size, chunks, chunk_size)
