"""Plans cover what is missing, once, in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.fetch.ranges import blocks, runs


@given(st.sets(st.integers(0, 200)), st.integers(1, 5))
def test_runs_hold_every_missing_chunk_once_in_order(missing: set[int], length_max: int) -> None:
    found = runs(missing, length_max)
    assert [index for run in found for index in run] == sorted(missing)
    assert all(1 <= len(run) <= length_max for run in found)


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 64))
def test_blocks_cover_the_extent_exactly(start: int, size: int, block_bytes: int) -> None:
    at = start
    for offset, length in blocks(start, start + size, block_bytes):
        assert offset == at
        assert 0 < length <= block_bytes
        at += length
    assert at == start + size
