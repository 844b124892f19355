"""One reply of the general path, cut into the chunks of a partial."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable

from anyio import to_thread

from ckptd_daemon.sources.source import Object, Source, TransientError
from ckptd_daemon.store.partials import Partial
from ckptd_daemon.transfer.bottleneck import Stopwatch, Work
from ckptd_daemon.transfer.pace import Pace
from ckptd_daemon.transfer.progress import Gauge
from ckptd_proto.crc import crc32c


class Reply:
    """Reads from one chunk to the end, or to one that nobody wants or that is here already."""

    def __init__(
        self,
        obj: Object,
        partial: Partial,
        buffer: memoryview,
        make_room: Callable[[str, int], Awaitable[None]],
        pace: Pace,
        received: Callable[[int], object],
    ) -> None:
        self._object = obj
        self._partial = partial
        self._buffer = buffer
        self._make_room = make_room  # for what the size, being unknown, did not reserve
        self._pace = pace
        self._received = received  # gets how many bytes more are here
        self._chunk = 0
        self._crc = 0  # of the part of the chunk that is on the disk
        self._at = 0  # where in the object the buffer goes
        self._filled = 0
        self._unlanded_bytes = 0
        self._time = Stopwatch()

    async def read(
        self,
        source: Source,
        gauge: Gauge,
        first: int,
        landed: Callable[[int], object],
        goes_on: Callable[[int], bool],
    ) -> int:
        """Return where in the object it stopped; every chunk from *first* to there has *landed*.

        *goes_on* tells whether the next one is to come, too.
        """
        self._chunk, self._at = first, self._partial.header.extent(first)[0]
        gauge.streams = 1
        gauge.spent = lambda: self._time.read(time.monotonic())
        gauge.is_writing = lambda: self._time.is_writing
        gauge.done_bytes = lambda: self._partial.landed_bytes + self._unlanded_bytes
        try:
            async with source.read(self._object, self._at) as blocks:
                while (block := await self._next(blocks)) is not None:
                    await self._pace.take_async(len(block))
                    self._received(len(block))
                    if not await self._take(memoryview(block), landed, goes_on):
                        break
        finally:
            gauge.streams = 0
            self._unlanded_bytes = 0
        if self._at + self._filled > self._start():  # the end tells an unknown size
            await to_thread.run_sync(self._flush, True)
            landed(self._chunk - 1)
        return self._at

    async def _next(self, blocks: AsyncIterator[bytes]) -> bytes | None:
        with self._time.at(Work.RECEIVING):
            return await anext(blocks, None)

    async def _take(
        self,
        block: memoryview,
        landed: Callable[[int], object],
        goes_on: Callable[[int], bool],
    ) -> bool:
        """Take what is wanted of *block*; returns whether more is."""
        while block:
            if self._object.size_bytes is None and self._at + self._filled == self._start():
                await self._make_room(self._partial.path.name, self._end())
            left = min(len(self._buffer), self._end() - self._at) - self._filled
            if left <= 0:
                raise TransientError(f"the reply has more than {self._at} bytes")
            part, block = block[:left], block[left:]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            self._unlanded_bytes += len(part)
            if len(part) == left:
                ends_chunk = self._at + self._filled == self._end()
                await to_thread.run_sync(self._flush, ends_chunk)
                if ends_chunk:
                    landed(self._chunk - 1)
                    if not goes_on(self._chunk):
                        return False
        return True

    def _start(self) -> int:
        return self._partial.header.extent(self._chunk)[0]

    def _end(self) -> int:
        return self._partial.header.extent(self._chunk)[1]

    def _flush(self, ends_chunk: bool) -> None:
        """Write the buffer, and note the chunk that it ends; blocks on the disk."""
        self._crc = crc32c(self._buffer[: self._filled], self._crc)
        with self._time.at(Work.WRITING):
            self._partial.write(self._buffer, self._filled, self._at)
        self._at += self._filled
        self._filled = 0
        if ends_chunk:
            size = self._at - self._start()
            self._partial.record(self._chunk, self._crc, size)
            self._unlanded_bytes -= size
            self._chunk, self._crc = self._chunk + 1, 0
