"""Sets of bytes, against the same set as a list of numbers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ckptd.reading.spans import Spans

SPAN = st.tuples(st.integers(0, 40), st.integers(0, 40))


@given(st.lists(SPAN), SPAN)
def test_a_set_of_spans_knows_which_bytes_are_in_it(
    added: list[tuple[int, int]], asked: tuple[int, int]
) -> None:
    spans, known = Spans(), set()
    for start, end in added:
        spans.add(start, end)
        known |= set(range(start, end))
    assert spans.covers(*asked) == (set(range(*asked)) <= known)
    end = asked[0]
    while end in known:
        end += 1
    assert spans.end_of(asked[0]) == end
    kept = list(spans)
    assert set().union(*(range(*span) for span in kept)) == known
    assert all(one[1] < other[0] for one, other in pairwise(kept))
