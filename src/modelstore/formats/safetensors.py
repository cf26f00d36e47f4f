"""The header of a safetensors file.

The format and its limits are those of github.com/huggingface/safetensors (README, "Format"): eight bytes of
little-endian length, that many bytes of JSON, then the tensors without a hole.
"""

import json
import os
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["SafetensorsHeader", "read_header"]

#: The limit of the reference implementation.
MAX_HEADER: Final = 100_000_000
#: Bits per element, by name.
_BITS: Final = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64,
    "F32": 32, "I32": 32, "U32": 32,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """The names of a file's tensors and its metadata."""

    tensors: frozenset[str]
    metadata: dict[str, str]


def read_header(path: str) -> SafetensorsHeader:
    """Read and check a header: the tensors must fill the rest of the file exactly.

    Raises :class:`ValueError` with the reason for a file that is not sound, :class:`OSError` if it cannot be read.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(MAX_HEADER, size - 8):
            raise ValueError(f"its header of {length} bytes does not fit into the file of {size}")
        raw = file.read(length)
    try:
        header = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata is not text by name")
    _check_tensors(header, size - 8 - length)
    return SafetensorsHeader(frozenset(header), metadata)


def _check_tensors(tensors: dict[str, Any], data_size: int) -> None:
    position = 0
    extents = [_extent(name, value) for name, value in tensors.items()]
    for begin, end, bits, name in sorted(extents, key=lambda extent: extent[:2]):
        if begin != position:
            raise ValueError(f"the tensor {name!r} begins at {begin}, not where the one before it ends ({position})")
        if bits is not None and (end - begin) * 8 != bits:
            raise ValueError(f"the tensor {name!r} has {end - begin} bytes, which is not what its shape needs")
        position = end
    if position != data_size:
        raise ValueError(f"its tensors need {position} bytes and it holds {data_size}")


def _extent(name: str, value: Any) -> tuple[int, int, int | None, str]:
    """Begin, end and needed bits of a tensor; None for a type that is newer than this code."""
    try:
        begin, end = value["data_offsets"]
        shape, dtype = value["shape"], value["dtype"]
        numbers = [begin, end, *shape]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"the tensor {name!r} is not described") from error
    if any(type(number) is not int or number < 0 for number in numbers) or begin > end or not isinstance(dtype, str):
        raise ValueError(f"the tensor {name!r} is described with impossible numbers")
    return begin, end, _needed_bits(dtype, shape), name


def _needed_bits(dtype: str, shape: list[int]) -> int | None:
    bits = _BITS.get(dtype)
    if bits is None or 0 in shape:
        return bits and 0
    for dimension in shape:
        bits *= dimension
        if bits.bit_length() > 80:  # no file is that large, and the product of a hostile shape never ends
            break
    return bits
