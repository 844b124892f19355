"""Reused page-aligned memory for the byte path, under one budget for the whole daemon."""

from __future__ import annotations

import ctypes
import mmap
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio

BLOCK_BYTES = 8 << 20  # smaller writes cost more than the memory saves
HUGE_BYTES = 2 << 20
"""Of a huge page. Direct I/O from such a one takes one segment of a request instead of 512, and
a virtual disk takes almost twice as much of it."""
WARM_BYTES = 32 << 20  # how much that nobody uses stays warm, to be faulted in by nobody again
REST_S = 60.0  # and for how long: a virtual machine may need its host to have a page again
TOUCHED_BYTES = 64 << 10
_MADV_POPULATE_WRITE = 23  # of Linux 5.14

_libc = ctypes.CDLL(None)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Buffers:
    """Blocks of up to `BLOCK_BYTES`, made when first needed and then kept warm for a while.

    They are of huge pages if the kernel has some, unless *is_huge* is false, and are counted in
    those.
    """

    def __init__(self, budget_bytes: int, *, is_huge: bool = True) -> None:
        self._budget_bytes = budget_bytes
        self._is_huge = is_huge
        self._page_bytes = HUGE_BYTES if is_huge else mmap.PAGESIZE
        self._lent_bytes = 0
        self._lent = 0
        self._idle: list[tuple[mmap.mmap, int]] = []  # each with what of it is in memory
        self._waiting: deque[tuple[int, anyio.Event]] = deque()
        self._rest = anyio.Event()  # set when nothing is lent
        self._rests_since = 0.0

    def __repr__(self) -> str:
        return f"<Buffers [{self._lent_bytes} of {self._budget_bytes} bytes lent]>"

    @property
    def is_short(self) -> bool:
        """Whether somebody waits for a block."""
        return bool(self._waiting)

    @asynccontextmanager
    async def lend(self, size_bytes: int = BLOCK_BYTES) -> AsyncIterator[memoryview]:
        """Lend so much of a block, in whole pages; waits while too much is lent.

        Whoever holds one must not wait for another. No thread may use it after the block ends.
        """
        size_bytes = min(max(1, size_bytes), BLOCK_BYTES)
        taken_bytes = _whole(size_bytes, self._page_bytes)
        await self._take(taken_bytes)
        block = self._warm(taken_bytes)
        try:
            with memoryview(block) as view, view[: _whole(size_bytes, mmap.PAGESIZE)] as part:
                yield part
        finally:
            self._idle.append((block, taken_bytes))
            self._give(taken_bytes)

    async def keep(self) -> None:
        """Give memory back to the system whenever nothing was lent for a while; runs for ever."""
        while True:
            await self._rest.wait()
            await anyio.sleep_until(self._rests_since + REST_S)
            if self._rest.is_set() and anyio.current_time() >= self._rests_since + REST_S:
                self._cool(0)
                self._rest = anyio.Event()

    async def _take(self, size_bytes: int) -> None:
        granted = anyio.Event()
        self._waiting.append((size_bytes, granted))
        self._grant()
        try:
            await granted.wait()
        except BaseException:
            if granted.is_set():
                self._give(size_bytes)
            else:
                self._waiting.remove((size_bytes, granted))
                self._grant()
            raise

    def _give(self, size_bytes: int) -> None:
        self._lent_bytes -= size_bytes
        self._lent -= 1
        self._grant()
        if not self._lent:
            self._cool(WARM_BYTES)
            self._rest.set()
            self._rests_since = anyio.current_time()

    def _grant(self) -> None:
        """Lend to those who wait, in the order they came."""
        while self._waiting and self._lent_bytes + self._waiting[0][0] <= self._budget_bytes:
            size_bytes, granted = self._waiting.popleft()
            self._lent_bytes += size_bytes
            self._lent += 1
            if self._rest.is_set():
                self._rest = anyio.Event()
            granted.set()

    def _warm(self, size_bytes: int) -> mmap.mmap:
        """Return a block of which no more than *size_bytes* are in memory."""
        block, warm_bytes = self._idle.pop() if self._idle else (mapped(is_huge=self._is_huge), 0)
        if warm_bytes > size_bytes:
            block.madvise(mmap.MADV_DONTNEED, size_bytes, warm_bytes - size_bytes)
        self._cool(self._budget_bytes - self._lent_bytes)
        return block

    def _cool(self, budget_bytes: int) -> None:
        """Drop from memory what of the idle blocks is above the budget, the next ones last."""
        total = 0
        for n in reversed(range(len(self._idle))):
            block, warm_bytes = self._idle[n]
            total += warm_bytes
            if warm_bytes and total > budget_bytes:
                block.madvise(mmap.MADV_DONTNEED, 0, warm_bytes)
                self._idle[n] = block, 0
                total -= warm_bytes


def _whole(size_bytes: int, page_bytes: int) -> int:
    return -(-size_bytes // page_bytes) * page_bytes


def mapped(*, is_huge: bool) -> mmap.mmap:
    """Return a block, of huge pages if the kernel has some; nothing of it is in memory yet."""
    block = mmap.mmap(-1, BLOCK_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # can be given back
    if is_huge:
        with suppress(OSError):  # a kernel without them; one before 6.7 may align fewer of them
            block.madvise(mmap.MADV_HUGEPAGE)
    return block


def touch(block: memoryview) -> None:
    """Have the beginning of a lent block in memory; blocks, but without the interpreter's lock.

    For a copy that is made under the lock: a page that has to be cleared first, which takes a
    virtual machine milliseconds, would hold up every other thread.
    """
    address = ctypes.addressof(ctypes.c_char.from_buffer(block))
    _libc.madvise(address, min(len(block), TOUCHED_BYTES), _MADV_POPULATE_WRITE)
    # where the kernel knows no such advice the copy takes longer, and is right
