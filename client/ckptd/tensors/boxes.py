"""Rectangular pieces of a tensor: do they cover it, where do they meet, which bytes is that."""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes."""


def coverage_problem(shape: tuple[int, ...], chunks: Sequence[Box]) -> str:
    """Say why *chunks* are not *shape* exactly once; empty if they are."""
    for offsets, sizes in chunks:
        if not len(offsets) == len(sizes) == len(shape):
            return f"have other dimensions ({len(sizes)}, not {len(shape)})"
        if any(o < 0 or s < 0 or o + s > n for o, s, n in zip(offsets, sizes, shape, strict=True)):
            return f"reach outside it (offsets {list(offsets)}, sizes {list(sizes)})"
    full = [chunk for chunk in chunks if math.prod(chunk[1])]
    held, total = sum(math.prod(sizes) for _, sizes in full), math.prod(shape)
    if pair := _overlapping(full):
        return f"overlap (at {list(pair[0][0])} and {list(pair[1][0])})"
    return "" if held == total else f"hold {held} of its {total} elements"


def overlap(left: Box, right: Box) -> Box | None:
    """Return the box in both; None if they do not meet."""
    starts = tuple(max(a, b) for a, b in zip(left[0], right[0], strict=True))
    ends = tuple(
        min(a + m, b + n) for a, m, b, n in zip(left[0], left[1], right[0], right[1], strict=True)
    )
    if any(end <= start for start, end in zip(starts, ends, strict=True)):
        return None
    return starts, tuple(end - start for start, end in zip(starts, ends, strict=True))


def element_span(strides: Sequence[int], part: Box) -> tuple[int, int]:
    """Return the half-open range of elements that holds *part* of a chunk with these *strides*.

    *part* is relative to the chunk and not empty.
    """
    first = sum(o * stride for o, stride in zip(part[0], strides, strict=True))
    last = sum((o + n - 1) * stride for o, n, stride in zip(*part, strides, strict=True))
    return first, last + 1


def row_major(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor of *sizes*."""
    strides = [1]
    for size in reversed(sizes[1:]):
        strides.append(strides[-1] * max(size, 1))
    return tuple(reversed(strides))[: len(sizes)]


def _overlapping(chunks: Sequence[Box]) -> tuple[Box, Box] | None:
    """Return two chunks that share elements: a sweep along the dimension cut most often."""
    if not chunks or not chunks[0][0]:
        return (chunks[0], chunks[1]) if len(chunks) > 1 else None
    axis = max(range(len(chunks[0][0])), key=lambda d: len({offsets[d] for offsets, _ in chunks}))
    active: list[Box] = []
    for chunk in sorted(chunks, key=lambda chunk: chunk[0][axis]):
        start = chunk[0][axis]
        active = [other for other in active if other[0][axis] + other[1][axis] > start]
        for other in active:
            if overlap(other, chunk):
                return other, chunk
        active.append(chunk)
    return None
