"""A part of a tensor is cut into pieces that a thread can hold, none lost and none twice."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import assume, given
from hypothesis import strategies as st

from ckptd.tensors import boxes
from ckptd.tensors.boxes import Box
from ckptd.tensors.cuts import GAP_BYTES, WINDOW_BYTES, Layout, cut, windows

MIB = 1 << 20


@st.composite
def parts(draw: st.DrawFn) -> tuple[Box, Layout]:
    """A part of a tensor whose dimensions lie in its file in any order."""
    shape = draw(st.lists(st.integers(1, 6), min_size=0, max_size=4))
    order = draw(st.permutations(range(len(shape))))
    dense = boxes.row_major([shape[dim] for dim in order])
    strides = [0] * len(shape)
    for dim, stride in zip(order, dense, strict=True):
        strides[dim] = stride * draw(st.integers(0 if dim == 0 else 1, 2))
    offsets = tuple(draw(st.integers(0, size - 1)) for size in shape)
    sizes = tuple(draw(st.integers(1, n - o)) for n, o in zip(shape, offsets, strict=True))
    start, element_bytes = draw(st.integers(0, 50)), draw(st.sampled_from([1, 2, 8]))
    return (offsets, sizes), Layout(start, tuple(strides), element_bytes)


def cells(box: Box) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(o, o + n) for o, n in zip(*box, strict=True))))


def rows_interleave(part: Box, layout: Layout) -> bool:
    """Say whether a row begins before the one before it has ended, along some dimension."""
    several = sorted((layout.strides[dim], size) for dim, size in enumerate(part[1]) if size > 1)
    reach = 1  # of the inner dimensions, in elements
    for stride, size in several:
        if 0 < stride < reach:
            return True
        reach += stride * (size - 1)
    return False


@given(parts(), st.integers(1, 64), st.integers(0, 64))
def test_every_element_is_in_one_piece_and_no_piece_reaches_over_a_window(
    given_: tuple[Box, Layout], window_bytes: int, gap_bytes: int
) -> None:
    part, layout = given_
    cuts = list(cut(part, layout, window_bytes=window_bytes, gap_bytes=gap_bytes))
    assert Counter(cell for piece in cuts for cell in cells(piece)) == Counter(cells(part))
    for piece in cuts:
        first, end = layout.span(piece)
        is_small = first // window_bytes == (end - 1) // window_bytes
        assert is_small or end - first == layout.element_bytes


@given(parts(), st.integers(1, 64))
def test_between_the_rows_of_a_piece_there_is_no_large_gap(
    given_: tuple[Box, Layout], gap_bytes: int
) -> None:
    part, layout = given_
    assume(not rows_interleave(part, layout))  # then what lies between two rows is no gap
    for piece in cut(part, layout, window_bytes=1 << 20, gap_bytes=gap_bytes):
        places = sorted(layout.span((cell, (1,) * len(cell))) for cell in cells(piece))
        assert all(next_[0] - last[1] <= gap_bytes for last, next_ in itertools.pairwise(places))


def test_what_is_dense_is_cut_at_the_windows_of_its_file_only() -> None:
    layout = Layout(MIB, (1,), 1)
    cuts = list(cut(((0,), (70 * MIB,)), layout))
    ends = [layout.span(piece)[1] for piece in cuts]
    assert ends == [WINDOW_BYTES, 2 * WINDOW_BYTES, 71 * MIB]


def test_a_narrow_column_is_read_without_what_lies_between_its_rows() -> None:
    row = 4 * GAP_BYTES
    cuts = list(cut(((0, 10), (8, 100)), Layout(0, (row, 1), 1)))
    assert [boxes.element_span((row, 1), piece) for piece in cuts] == [
        (number * row + 10, number * row + 110) for number in range(8)
    ]


def test_columns_far_apart_are_pieces_of_their_own_though_the_next_row_begins_at_once() -> None:
    far = GAP_BYTES + 1
    strides = (3 * far, 2 * far, 1)  # of three blocks in a row the first and the last
    cuts = list(cut(((0, 0, 0), (2, 2, far)), Layout(0, strides, 1)))
    spans = [boxes.element_span(strides, piece) for piece in cuts]
    assert spans == [(number * far, (number + 1) * far) for number in (0, 2, 3, 5)]


def test_a_column_with_small_gaps_is_read_in_one_go() -> None:
    cuts = list(cut(((0, 10), (1000, 10)), Layout(0, (1000, 1), 1)))
    assert cuts == [((0, 10), (1000, 10))]


@given(st.integers(0, 3 * WINDOW_BYTES), st.integers(1, 3 * WINDOW_BYTES))
def test_bytes_are_cut_where_windows_end_and_nowhere_else(start: int, size_bytes: int) -> None:
    end = start + size_bytes
    ends = [at for at in range(WINDOW_BYTES, end, WINDOW_BYTES) if at > start]
    assert list(windows(start, end)) == list(itertools.pairwise([start, *ends, end]))
