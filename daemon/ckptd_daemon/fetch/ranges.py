"""Which ranges to ask for: plain values, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def blocks(start: int, end: int, block_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut `[start, end)` into (offset, length) pieces of at most *block_bytes*."""
    for offset in range(start, end, block_bytes):
        yield offset, min(block_bytes, end - offset)


def runs(chunks: Iterable[int], length_max: int) -> list[range]:
    """Group chunk indexes into runs of adjacent ones, in order, each at most *length_max* long."""
    found: list[range] = []
    for index in sorted(chunks):
        last = found[-1] if found else None
        if last is not None and last.stop == index and len(last) < length_max:
            found[-1] = range(last.start, index + 1)
        else:
            found.append(range(index, index + 1))
    return found
