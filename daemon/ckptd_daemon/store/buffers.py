"""Reused page-aligned memory for the byte path, under one budget for the whole daemon."""

from __future__ import annotations

import mmap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

BLOCK_BYTES = 8 << 20  # smaller writes cost more than the memory saves


class Buffers:
    """At most *count* blocks, made when first needed and then kept warm."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._idle: list[mmap.mmap] = []
        self._limit = anyio.Semaphore(count)

    def __repr__(self) -> str:
        return f"<Buffers [{self._count - self._limit.value} of {self._count} lent]>"

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[memoryview]:
        """Lend one block; waits while all are lent. No thread may use it after the block ends."""
        async with self._limit:
            block = self._idle.pop() if self._idle else mmap.mmap(-1, BLOCK_BYTES)
            try:
                with memoryview(block) as view:
                    yield view
            finally:
                self._idle.append(block)
