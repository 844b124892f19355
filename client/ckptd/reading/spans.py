"""Which bytes of a file: sets of spans, each a start and an end that is not in it; pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

Span = tuple[int, int]


class Spans:
    """A set of bytes, kept as few, sorted, disjoint spans."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __iter__(self) -> Iterator[Span]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def __repr__(self) -> str:
        return f"<Spans {list(self)}>"

    def add(self, start: int, end: int) -> None:
        """Take in another span; what it touches becomes one with it."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        behind = bisect_right(self._starts, end)
        if first < behind:
            start = min(start, self._starts[first])
            end = max(end, self._ends[behind - 1])
        self._starts[first:behind] = [start]
        self._ends[first:behind] = [end]

    def end_of(self, start: int) -> int:
        """Return how far the bytes from *start* on are all in the set; *start* if none is."""
        index = bisect_right(self._starts, start) - 1
        return max(start, self._ends[index]) if index >= 0 else start

    def covers(self, start: int, end: int) -> bool:
        """Tell whether all of a span is in the set; of an empty one nothing can be missing."""
        return self.end_of(start) >= end
