"""How a blob is cut into ranges."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelstore.digest import CHUNK_SIZE
from modelstore.transfer.plan import plan_chunks


@settings(deadline=None)
@given(st.integers(1, 500), st.data())
def test_every_byte_is_in_exactly_one_chunk(chunk_size: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 50 * chunk_size))
    plan = plan_chunks(size, chunk_size)
    assert [byte for chunk in plan for byte in range(chunk.start, chunk.stop)] == list(range(size))
    assert [chunk.index for chunk in plan] == list(range(len(plan)))
    assert all(chunk.start == chunk.index * chunk_size for chunk in plan)
    assert all(0 < chunk.stop - chunk.start <= chunk_size for chunk in plan)


@pytest.mark.parametrize(
    ("size", "count"), [(0, 0), (1, 1), (CHUNK_SIZE, 1), (CHUNK_SIZE + 1, 2), (2**40, 2**40 // CHUNK_SIZE)]
)
def test_the_default_chunk_is_the_formats(size: int, count: int) -> None:
    plan = plan_chunks(size)
    assert len(plan) == count
    assert sum(chunk.stop - chunk.start for chunk in plan) == size


@pytest.mark.parametrize(("size", "chunk_size"), [(-1, 16), (16, 0), (16, -16)])
def test_what_cannot_be_cut_is_refused(size: int, chunk_size: int) -> None:
    with pytest.raises(ValueError):
        plan_chunks(size, chunk_size)
