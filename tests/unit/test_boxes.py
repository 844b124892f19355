from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from ckptd.tensors import boxes


@st.composite
def two_boxes(draw: st.DrawFn) -> tuple[tuple[int, ...], boxes.Box, boxes.Box]:
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))

    def box() -> boxes.Box:
        offsets = tuple(draw(st.integers(0, size)) for size in shape)
        sizes = tuple(draw(st.integers(0, n - o)) for n, o in zip(shape, offsets, strict=True))
        return offsets, sizes

    return shape, box(), box()


def cells(box: boxes.Box) -> set[tuple[int, ...]]:
    return set(itertools.product(*(range(o, o + n) for o, n in zip(*box, strict=True))))


@given(two_boxes())
def test_the_overlap_is_exactly_the_common_elements(
    given_: tuple[tuple[int, ...], boxes.Box, boxes.Box],
) -> None:
    _, left, right = given_
    met = boxes.overlap(left, right)
    assert (cells(met) if met else set()) == cells(left) & cells(right)


@given(two_boxes())
def test_the_span_of_a_part_holds_its_elements_and_no_more_at_the_ends(
    given_: tuple[tuple[int, ...], boxes.Box, boxes.Box],
) -> None:
    shape, part, _ = given_
    if not math.prod(part[1]):
        return
    strides = boxes.row_major(shape)
    places = [sum(i * s for i, s in zip(cell, strides, strict=True)) for cell in cells(part)]
    assert boxes.element_span(boxes.row_major(shape), part) == (min(places), max(places) + 1)


@given(two_boxes())
def test_two_chunks_are_a_cover_only_if_every_element_is_in_exactly_one(
    given_: tuple[tuple[int, ...], boxes.Box, boxes.Box],
) -> None:
    shape, left, right = given_
    everything = cells(((0,) * len(shape), shape))
    is_cover = not cells(left) & cells(right) and cells(left) | cells(right) == everything
    assert (boxes.coverage_problem(shape, [left, right]) == "") == is_cover
