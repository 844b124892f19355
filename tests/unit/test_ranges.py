"""Sets of bytes hold what was put in, and no more."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.transfer.ranges import Ranges

SIZE = 60
spans = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda pair: sorted(pair))


def held(ranges: Ranges) -> set[int]:
    return {at for start, end in ranges for at in range(start, end)}


@given(st.lists(st.tuples(spans, st.booleans()), max_size=30), spans)
def test_ranges_hold_what_was_added_and_not_taken(
    steps: list[tuple[list[int], bool]], asked: list[int]
) -> None:
    ranges, expected = Ranges(), set[int]()
    for (start, end), is_added in steps:
        span = set(range(start, end))
        if is_added and not span & expected:
            ranges.add(start, end)
            expected |= span
        elif span and span <= expected:
            ranges.take(start, end)
            expected -= span
        assert held(ranges) == expected
        assert ranges.total_bytes == len(expected)
        found = list(ranges)
        assert all(one[1] < other[0] for one, other in itertools.pairwise(found))
    first = ranges.first(*asked)
    inside = sorted(set(range(*asked)) & expected)
    if not inside:
        assert first is None
    else:
        assert first is not None
        assert first[0] == inside[0]
        assert set(range(*first)) <= set(inside)
        assert first[1] not in inside
