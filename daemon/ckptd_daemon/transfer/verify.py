"""SHA-256 of what is on the disk, trailing the download so that the end comes soon after it.

Thread and memory are taken while there is something to hash only: what waits for a download that
is at rest holds up nobody.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from itertools import takewhile
from typing import Protocol

from anyio import CapacityLimiter, to_thread

from ckptd_daemon.store.buffers import Buffers
from ckptd_daemon.store.partials import Partial
from ckptd_daemon.transfer.demand import Demand

THREADS = 8
BLOCK_BYTES = 4 << 20
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
    for index in chunks:
        for block in partial.blocks(*partial.header.extent(index), buffer):
            digest.update(block)


def _digest(partial: Partial, size_bytes: int, buffer: memoryview) -> str:
    digest = hashlib.sha256()
    for block in partial.blocks(0, size_bytes, buffer):
        digest.update(block)
    return digest.hexdigest()
