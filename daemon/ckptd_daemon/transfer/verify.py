"""SHA-256 of what is on the disk, trailing the download so that the end comes soon after it.

Thread and memory are taken while there is something to hash only: what waits for a download that
is at rest holds up nobody.
"""

from __future__ import annotations

import functools
import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import takewhile
from typing import Protocol

from anyio import CapacityLimiter, to_thread

from ckptd_daemon.store.buffers import Buffers
from ckptd_daemon.store.partials import Partial
from ckptd_daemon.transfer.demand import Demand

THREADS = 8
BLOCK_BYTES = 4 << 20
READS = 4  # one of them is hashed, the others are on their way
TURN_CHUNKS = 4  # then another trail has its turn, or the end of a flight


class Hash(Protocol):
    """What `hashlib` computes."""

    def update(self, data: memoryview, /) -> None:
        """Add *data*."""


class Hasher:
    """Computes the SHA-256 of partials, in threads and memory of its own."""

    def __init__(self) -> None:
        self.buffers = Buffers(THREADS * BLOCK_BYTES)
        self._threads = CapacityLimiter(THREADS)

    async def trail(self, partial: Partial, demand: Demand) -> str | None:
        """Hash *partial* chunk by chunk as they land, which *demand* tells.

        Returns None if the partial was started anew meanwhile, or its size is unknown.
        """
        if partial.header.size_bytes is None:
            return None
        lives, count, index = partial.lives, partial.header.chunk_count, 0
        digest = hashlib.sha256()
        while index < count:
            last = min(count, index + TURN_CHUNKS)
            turn = list(takewhile(partial.landed.__contains__, range(index, last)))
            if not turn:
                await demand.moved()
                continue
            async with self.buffers.lend(BLOCK_BYTES) as buffer:
                work = functools.partial(_update, digest, partial, turn, buffer)
                await to_thread.run_sync(work, limiter=self._threads)
            if partial.lives != lives:
                return None
            index += len(turn)
        return digest.hexdigest()

    async def digest(self, partial: Partial, size_bytes: int) -> str:
        """Return the SHA-256 of a filled partial in one pass."""
        async with self.buffers.lend(BLOCK_BYTES) as buffer:
            work = functools.partial(_digest, partial, size_bytes, buffer)
            return await to_thread.run_sync(work, limiter=self._threads)


def _update(digest: Hash, partial: Partial, chunks: Sequence[int], buffer: memoryview) -> None:
    extents = (partial.header.extent(index) for index in chunks)
    for block in _read_ahead(partial, extents, buffer):
        digest.update(block)


def _digest(partial: Partial, size_bytes: int, buffer: memoryview) -> str:
    digest = hashlib.sha256()
    for block in _read_ahead(partial, [(0, size_bytes)], buffer):
        digest.update(block)
    return digest.hexdigest()


def _read_ahead(
    partial: Partial, extents: Iterable[tuple[int, int]], buffer: memoryview
) -> Iterator[memoryview]:
    """Yield what lies there piece by piece, while the next are read: a disk wants several at once."""
    size = len(buffer) // READS
    free = deque(buffer[at * size :][:size] for at in range(READS))
    coming: deque[tuple[Future[memoryview | None], memoryview]] = deque()
    with ThreadPoolExecutor(READS - 1, thread_name_prefix="ckptd-read") as threads:
        pieces = (
            (at, min(at + size, end)) for start, end in extents for at in range(start, end, size)
        )
        for at, stop in pieces:
            target = free.popleft()
            coming.append((threads.submit(_read, partial, at, stop, target), target))
            if not free:
                yield from _oldest(coming, free)
        while coming:
            yield from _oldest(coming, free)


def _oldest(
    coming: deque[tuple[Future[memoryview | None], memoryview]], free: deque[memoryview]
) -> Iterator[memoryview]:
    """Yield what was asked for first, if anything is there, and take its memory back."""
    future, target = coming.popleft()
    if (block := future.result()) is not None:
        yield block
    free.append(target)


def _read(partial: Partial, start: int, end: int, target: memoryview) -> memoryview | None:
    return next(partial.blocks(start, end, target), None)
