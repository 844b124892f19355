"""A box cut into pieces that are small in their file, and leave out what lies between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ckptd.tensors import boxes
from ckptd.tensors.boxes import Box

WINDOW_BYTES: Final = 32 << 20
"""No piece reaches over a multiple of this, in its file: so no chunk is in two windows."""
GAP_BYTES: Final = 4 << 20
"""Between two rows; what is less is in a chunk that has to be read, or nearly so."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the elements of a tensor lie in a file."""

    start: int
    """Of the first element."""
    strides: Sequence[int]
    """In elements."""
    element_bytes: int

    def span(self, part: Box) -> tuple[int, int]:
        """Return the half-open range of the file that holds *part*, which is not empty."""
        first, end = boxes.element_span(self.strides, part)
        return self.start + first * self.element_bytes, self.start + end * self.element_bytes


def windows(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the bytes from *start* to *end*, cut where windows end."""
    while start < end:
        stop = min(end, (start // WINDOW_BYTES + 1) * WINDOW_BYTES)
        yield start, stop
        start = stop


def cut(
    part: Box, layout: Layout, *, window_bytes: int = WINDOW_BYTES, gap_bytes: int = GAP_BYTES
) -> Iterator[Box]:
    """Yield *part* in pieces that each lie in one window, or are one element. Pure.

    Where more than *gap_bytes* lie between two rows they are pieces of their own.
    """
    dim = _outermost(part, layout)
    first, end = layout.span(part)
    if dim is None or layout.strides[dim] == 0:
        yield part
        return
    row_bytes = layout.span(_rows(part, dim, 0, 1))[1] - first
    step_bytes = layout.strides[dim] * layout.element_bytes
    is_gappy = _has_gap(part, layout, gap_bytes)
    if not is_gappy and first // window_bytes == (end - 1) // window_bytes:
        yield part
        return
    at, count = 0, part[1][dim]
    while at < count:
        room = window_bytes - (first + at * step_bytes) % window_bytes
        fitting = min((room - row_bytes) // step_bytes + 1, count - at) if room >= row_bytes else 0
        if fitting > 1 and not is_gappy:
            yield _rows(part, dim, at, fitting)
            at += fitting
        else:
            within = _rows(part, dim, at, 1)
            yield from cut(within, layout, window_bytes=window_bytes, gap_bytes=gap_bytes)
            at += 1


def _has_gap(part: Box, layout: Layout, gap_bytes: int) -> bool:
    """Say whether more than *gap_bytes* lie between two rows, of whichever dimension."""
    dim = _outermost(part, layout)
    if dim is None or layout.strides[dim] == 0:
        return False
    row = _rows(part, dim, 0, 1)
    first, end = layout.span(row)
    between_bytes = layout.strides[dim] * layout.element_bytes - (end - first)
    return between_bytes > gap_bytes or _has_gap(row, layout, gap_bytes)


def _outermost(part: Box, layout: Layout) -> int | None:
    """Return the dimension whose rows lie farthest apart; None if there is one element."""
    several = [dim for dim, size in enumerate(part[1]) if size > 1]
    return max(several, key=lambda dim: layout.strides[dim], default=None)


def _rows(part: Box, dim: int, start: int, count: int) -> Box:
    offsets, sizes = part
    moved = (*offsets[:dim], offsets[dim] + start, *offsets[dim + 1 :])
    return moved, (*sizes[:dim], count, *sizes[dim + 1 :])
