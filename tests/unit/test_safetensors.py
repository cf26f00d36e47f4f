"""The header reader, judged by the real `safetensors` package: it writes what must be accepted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from modelstore.formats.safetensors import MAX_HEADER, read_header

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = "float64 float32 float16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool complex64".split()


def check(path: Path, data: bytes) -> set[str]:
    path.write_bytes(data)
    return set(read_header(str(path)).tensors)


def file_of(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def tensor(begin: int, end: int, shape: list[Any], dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_every_type_that_numpy_writes_is_accepted(tmp_path: Path) -> None:
    tensors = {name: np.zeros((3, 5), name) for name in DTYPES}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(str(path))
    assert header.tensors == set(tensors)
    assert header.metadata == {"format": "pt"}
    assert {
        info["dtype"] for info in json.loads(path.read_bytes()[8:].split(b"}}")[0] + b"}}").values() if "dtype" in info
    } >= {"F64", "BOOL", "C64"}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.dictionaries(
        st.text(min_size=1), st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4)), max_size=6
    )
)
def test_what_the_real_package_writes_is_accepted(tmp_path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    written = save({name: np.zeros(shape, dtype) for name, (dtype, shape) in tensors.items() if name != "__metadata__"})
    assert check(tmp_path / "x", written) == tensors.keys() - {"__metadata__"}


SMALL = save({"a": np.arange(4, dtype=np.float32), "b": np.arange(3, dtype=np.uint8)})


def test_a_truncated_file_is_refused_at_every_byte(tmp_path: Path) -> None:
    assert check(tmp_path / "x", SMALL) == {"a", "b"}
    for length in range(len(SMALL)):
        with pytest.raises(ValueError):
            check(tmp_path / "x", SMALL[:length])


def test_bytes_after_the_last_tensor_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        check(tmp_path / "x", SMALL + b"\0")


DEEP = b"[" * 100_000
UNSOUND = {
    "a header longer than the file": (2**63).to_bytes(8, "little") + SMALL[8:],
    "a header one byte longer than the file": (len(SMALL) - 7).to_bytes(8, "little") + SMALL[8:],
    "no object": file_of([]),
    "no JSON": file_of(b"\xff{}"),
    "nothing": file_of(b""),
    "deep JSON": file_of(DEEP),
    "a long number": file_of(b'{"a":' + b"1" * 5000 + b"}"),
    "a hole before the first": file_of({"a": tensor(1, 3, [2])}, b"123"),
    "a hole": file_of({"a": tensor(0, 2, [2]), "b": tensor(3, 5, [2])}, b"12345"),
    "an overlap": file_of({"a": tensor(0, 3, [3]), "b": tensor(2, 4, [2])}, b"1234"),
    "the same bytes twice": file_of({"a": tensor(0, 2, [2]), "b": tensor(0, 2, [2])}, b"12"),
    "beyond the end": file_of({"a": tensor(0, 3, [3])}, b"12"),
    "backwards": file_of({"a": tensor(2, 0, [2])}, b"12"),
    "negative": file_of({"a": tensor(-2, 0, [2])}),
    "a negative shape": file_of({"a": tensor(0, 2, [-1, -2])}, b"12"),
    "another shape": file_of({"a": tensor(0, 2, [3])}, b"12"),
    "another type": file_of({"a": tensor(0, 2, [2], "F32")}, b"12"),
    "half a byte": file_of({"a": tensor(0, 1, [1], "F4")}, b"1"),
    "offsets of another kind": file_of({"a": {"dtype": "U8", "shape": [], "data_offsets": ["0", "1"]}}, b"1"),
    "offsets that are no integers": file_of({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0.0, 1.0]}}, b"1"),
    "offsets that are booleans": file_of({"a": {"dtype": "U8", "shape": [True], "data_offsets": [False, True]}}, b"1"),
    "three offsets": file_of({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}}, b"1"),
    "no offsets": file_of({"a": {"dtype": "U8", "shape": [1]}}, b"1"),
    "no shape": file_of({"a": {"dtype": "U8", "data_offsets": [0, 1]}}, b"1"),
    "no type": file_of({"a": {"shape": [1], "data_offsets": [0, 1]}}, b"1"),
    "a type that is no text": file_of({"a": {"dtype": 3, "shape": [1], "data_offsets": [0, 1]}}, b"1"),
    "a shape that is no list": file_of({"a": {"dtype": "U8", "shape": 1, "data_offsets": [0, 1]}}, b"1"),
    "a tensor that is no object": file_of({"a": 1}),
    "an empty tensor beside one of a new type": file_of({"a": tensor(0, 0, [0]), "b": tensor(0, 0, [0], "NEW")}, b"1"),
}


@pytest.mark.parametrize("data", UNSOUND.values(), ids=UNSOUND)
def test_an_unsound_file_is_refused_as_the_real_package_does(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ValueError):
        check(tmp_path / "x", data)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(data)


def test_a_header_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("wb") as file:  # sparse
        file.write((MAX_HEADER + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER + 100)
    with pytest.raises(ValueError, match="does not fit"):
        read_header(str(path))


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.encode("utf-16"),
        b'{"__metadata__":3,"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'{"__metadata__":{"a":1},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
    ],
    ids=["UTF-16", "metadata that is no object", "metadata that is no text"],
)
def test_a_header_that_the_real_package_refuses_is_not_sound(tmp_path: Path, header: bytes) -> None:
    data = file_of(header, b"1")
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(data)
    with pytest.raises(ValueError):
        check(tmp_path / "x", data)


@pytest.mark.parametrize("dtype", ["NEW", "F128"])
def test_a_type_that_is_newer_than_this_code_is_accepted(tmp_path: Path, dtype: str) -> None:
    assert check(tmp_path / "x", file_of({"a": tensor(0, 3, [7], dtype)}, b"123")) == {"a"}
    empty = {"a": tensor(0, 0, [0]), "b": tensor(0, 0, [0], dtype)}
    assert check(tmp_path / "x", file_of(empty)) == {"a", "b"}


def test_types_below_a_byte(tmp_path: Path) -> None:
    assert check(
        tmp_path / "x", file_of({"a": tensor(0, 2, [4], "F4"), "b": tensor(2, 5, [4], "F6_E2M3")}, b"12345")
    ) == {"a", "b"}


@pytest.mark.timeout(20)
def test_a_shape_of_many_dimensions_takes_no_time(tmp_path: Path) -> None:
    """Multiplied out, this one has ten million digits."""
    with pytest.raises(ValueError):
        check(tmp_path / "x", file_of({"a": tensor(0, 1, [2**53] * 600_000)}, b"1"))


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_a_value_error(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(SMALL)
    for at in data.draw(st.lists(st.integers(0, len(SMALL) - 1), min_size=1, max_size=4)):
        raw[at] = data.draw(st.integers(0, 255))
    try:
        check(tmp_path / "x", bytes(raw))
    except ValueError:
        return
    assert int.from_bytes(raw[:8], "little") == int.from_bytes(SMALL[:8], "little")


numbers = st.integers(-1, 5) | st.sampled_from([True, None, "1", 2.0, 10**30])
tensors = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["U8", "F32", "F4", "NEW"]) | numbers,
        "shape": st.lists(numbers, max_size=3) | numbers,
        "data_offsets": st.lists(numbers, min_size=2, max_size=2) | numbers,
    },
)
sound = st.tuples(st.integers(0, 2), st.integers(0, 2), st.sampled_from(["U8", "NEW"])).map(
    lambda drawn: tensor(drawn[0], drawn[0] + drawn[1], [drawn[1]], drawn[2])
)


@settings(deadline=None, max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.sampled_from("abcd"), tensors | sound) | st.binary(), body=st.binary(max_size=8))
def test_any_header_is_read_or_a_value_error(tmp_path: Path, header: Any, body: bytes) -> None:
    try:
        found = check(tmp_path / "x", file_of(header, body))
    except ValueError:
        return
    ends = [value["data_offsets"] for value in header.values()]
    assert sum(end - begin for begin, end in ends) == len(body)
    assert found == header.keys()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary())
def test_any_bytes_are_read_or_a_value_error(tmp_path: Path, raw: bytes) -> None:
    for data in (raw, (len(raw) & 7).to_bytes(8, "little") + raw):
        try:
            check(tmp_path / "x", data)
        except ValueError:
            continue


def test_a_file_that_cannot_be_read_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_header(str(tmp_path / "missing"))
