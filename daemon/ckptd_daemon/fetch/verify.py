"""SHA-256 of what is on the disk, trailing the download so that the end comes soon after it."""

from __future__ import annotations

import functools
import hashlib

from anyio import CapacityLimiter, to_thread

from ckptd_daemon.store.buffers import Buffers
from ckptd_daemon.store.partials import Partial

THREADS = 8  # each waits most of the time, and holds a buffer of its own meanwhile
BLOCK_BYTES = 4 << 20


class Hasher:
    """Computes the SHA-256 of partials, in threads and memory of its own.

    A trail waits for a download: if it held a buffer that a download may need, they could all
    wait for each other.
    """

    def __init__(self) -> None:
        self.buffers = Buffers(THREADS * BLOCK_BYTES)
        self._threads = CapacityLimiter(THREADS)

    async def trail(self, partial: Partial) -> str | None:
        """Hash *partial* chunk by chunk as they land.

        Returns None if that was given up, the partial was started anew meanwhile, or its size is
        unknown.
        """
        async with self.buffers.lend(BLOCK_BYTES) as buffer:
            return await to_thread.run_sync(_trail, partial, buffer, limiter=self._threads)

    async def digest(self, partial: Partial, size_bytes: int) -> str:
        """Return the SHA-256 of a filled partial in one pass."""
        async with self.buffers.lend(BLOCK_BYTES) as buffer:
            work = functools.partial(_digest, partial, size_bytes, buffer)
            return await to_thread.run_sync(work, limiter=self._threads)


def _trail(partial: Partial, buffer: memoryview) -> str | None:
    if partial.header.size_bytes is None:
        return None
    lives = partial.lives
    digest = hashlib.sha256()
    for index in range(partial.header.chunk_count):
        if not partial.wait_landed(index):
            return None
        for block in partial.blocks(*partial.header.extent(index), buffer):
            digest.update(block)
    return digest.hexdigest() if partial.lives == lives else None


def _digest(partial: Partial, size_bytes: int, buffer: memoryview) -> str:
    digest = hashlib.sha256()
    for block in partial.blocks(0, size_bytes, buffer):
        digest.update(block)
    return digest.hexdigest()
