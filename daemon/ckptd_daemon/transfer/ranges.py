"""Sets of bytes as sorted, disjoint, half-open ranges: plain values, no I/O."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

Range = tuple[int, int]


class Ranges:
    """Ranges that may be added, and taken out of, in any order."""

    def __init__(self) -> None:
        self._ranges: list[Range] = []
        self.total_bytes = 0

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    def __repr__(self) -> str:
        return f"<Ranges [{len(self._ranges)} of {self.total_bytes} bytes]>"

    def add(self, start: int, end: int) -> None:
        """Add `[start, end)`, of which nothing is in yet."""
        if start >= end:
            return
        self.total_bytes += end - start
        at = bisect_left(self._ranges, (start, end))
        if at < len(self._ranges) and self._ranges[at][0] == end:
            end = self._ranges.pop(at)[1]
        if at > 0 and self._ranges[at - 1][1] == start:
            at -= 1
            start = self._ranges.pop(at)[0]
        self._ranges.insert(at, (start, end))

    def first(self, start: int, end: int) -> Range | None:
        """Return the first part of `[start, end)` that is in."""
        at = bisect_left(self._ranges, (start, start))
        if at > 0 and self._ranges[at - 1][1] > start:
            at -= 1
        if start >= end or at == len(self._ranges) or self._ranges[at][0] >= end:
            return None
        return max(start, self._ranges[at][0]), min(end, self._ranges[at][1])

    def take(self, start: int, end: int) -> None:
        """Remove `[start, end)`, which is in as a whole and not empty."""
        at = bisect_right(self._ranges, start, key=_start) - 1
        around = self._ranges.pop(at)
        self._ranges[at:at] = [
            part for part in ((around[0], start), (end, around[1])) if part[0] < part[1]
        ]
        self.total_bytes -= end - start


def _start(found: Range) -> int:
    return found[0]
