"""One image, read by one thread from the best copy there is, each chunk checked as it arrives."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Final

from ckptd.tensors.copies import PAGE_BYTES, Copy, File
from ckptd_proto import errors
from ckptd_proto.crc import crc32c

_BLOCK_BYTES: Final = 1 << 20
"""Summed as soon as they are read, while they lie in a core's own cache."""
_SMALL_BYTES: Final = 64 << 10
"""If the pieces of a chunk have less, on average, they are not worth reads of their own."""

Part = tuple[int, memoryview]
"""Where bytes of an image begin, and where they go."""

_scratch = threading.local()


class Sums:
    """The checksums of one image, a chunk at a time."""

    def __init__(self, size_bytes: int, chunk_bytes: int, crcs: list[int]) -> None:
        self.size_bytes = size_bytes
        self.chunk_bytes = chunk_bytes
        self._crcs = crcs

    def bounds(self, chunk: int) -> tuple[int, int]:
        """Return the half-open range of bytes of *chunk*."""
        start = chunk * self.chunk_bytes
        return start, min(start + self.chunk_bytes, self.size_bytes)

    def matches(self, chunk: int, crc: int) -> bool:
        """Say whether *crc* is that of what was written as *chunk*."""
        return chunk < len(self._crcs) and crc == self._crcs[chunk]


class Cursor:
    """Reads one image; nothing that it has not compared with its sums counts as read."""

    def __init__(
        self,
        sums: Sums,
        file: File,
        memory: Copy | None,
        on_corrupt: Callable[[str], None],
        shared: int = 0,
    ) -> None:
        """Read from *memory*, if given, until it proves bad: then *on_corrupt* hears why.

        Bit n of *shared* is set if other processes here read chunk n, too.
        """
        self._sums = sums
        self._file = file
        self._memory = memory
        self._on_corrupt = on_corrupt
        self._shared = shared
        self.bad_chunk: int | None = None
        """Of the file, once it has proved not to be what was saved."""

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill *target* with the bytes at *offset*; as `fill`."""
        self.fill([(offset, target)])

    def fill(self, parts: Sequence[Part]) -> None:
        """Fill each target; raises `DataLoss`, naming file and chunk: then all of them are void."""
        for offset, target in parts:
            if (end := offset + len(target)) > self._sums.size_bytes:
                where = f"{self._file.path} ends at {self._sums.size_bytes}"
                raise errors.DataLoss(f"{where}, before {end}; load another step")
        cut = [piece for part in parts for piece in self._cut(part)]
        cut.sort(key=lambda piece: piece[0])
        for chunk, pieces in groupby(cut, key=lambda piece: piece[0] // self._sums.chunk_bytes):
            self._fill(chunk, list(pieces))

    def _cut(self, part: Part) -> Iterator[Part]:
        """Yield *part*, cut where chunks end."""
        at, target = part
        while target:
            _, stop = self._sums.bounds(at // self._sums.chunk_bytes)
            length = min(stop - at, len(target))
            yield at, target[:length]
            at, target = at + length, target[length:]

    def _fill(self, chunk: int, pieces: list[Part]) -> None:
        if self._memory is not None and not self._fill_from_memory(chunk, pieces, self._memory):
            self._memory = None
        if self._memory is None and not self._fill_from_file(chunk, pieces):
            self.bad_chunk = chunk
            start, stop = self._sums.bounds(chunk)
            text = (
                f"{self._file.path} is corrupt in chunk {chunk} (bytes {start} to {stop}): its"
                " CRC32C is not the one that was saved; load another step"
            )
            raise errors.DataLoss(text)

    def _fill_from_memory(self, chunk: int, pieces: list[Part], memory: Copy) -> bool:
        """Fill the pieces; say whether it is what was saved."""
        start, stop = self._sums.bounds(chunk)
        try:
            is_good = self._fill_through(memory.read, chunk, pieces)
        except (errors.DataLoss, OSError) as error:
            self._on_corrupt(str(error))
            return False
        if not is_good:
            self._on_corrupt(f"the CRC32C of chunk {chunk} (bytes {start} to {stop}) is another")
        return is_good

    def _fill_from_file(self, chunk: int, pieces: list[Part]) -> bool:
        """Fill the pieces; say whether it is what was saved.

        Past the page cache, unless the chunk lies there already, or is to: for others.
        """
        start, stop = self._sums.bounds(chunk)
        is_shared = bool(self._shared >> chunk & 1)
        if is_shared or start % PAGE_BYTES or self._file.is_near(start, stop - start):
            self._file.bring(start, stop - start)
            return self._fill_through(self._file.read, chunk, pieces)
        pages = self._pages()
        self._file.read_past(pages, stop - start, start)
        return self._move(chunk, pages[: stop - start], pieces)

    def _fill_through(
        self, read: Callable[[memoryview, int], None], chunk: int, pieces: list[Part]
    ) -> bool:
        """Fill the pieces by *read*, one pass over all bytes, if they are few; say as above.

        What is wrong lies in the targets then, and is read again, or void.
        """
        start, stop = self._sums.bounds(chunk)
        segments = self._segments(chunk, pieces)
        if segments is None:
            data = self._room(stop - start)
            read(data, start)
            return self._move(chunk, data, pieces)
        crc = 0
        for at, segment in segments:
            for done in range(0, len(segment), _BLOCK_BYTES):
                block = segment[done : done + _BLOCK_BYTES]
                read(block, at + done)
                crc = crc32c(block, crc)
        return self._sums.matches(chunk, crc)

    def _segments(self, chunk: int, pieces: list[Part]) -> list[Part] | None:
        """Return where all bytes of the chunk go, what nobody wants to memory of our own.

        None if that is many small steps, or two want the same bytes.
        """
        at, stop = self._sums.bounds(chunk)
        if len(pieces) > max(1, (stop - at) // _SMALL_BYTES):
            return None
        segments: list[Part] = []
        for start, target in pieces:
            if start < at:
                return None
            if start > at:
                segments.append((at, self._room(start - at)))
            segments.append((start, target))
            at = start + len(target)
        if at < stop:
            segments.append((at, self._room(stop - at)))
        return segments

    def _room(self, size_bytes: int) -> memoryview:
        """Return memory for what nobody wants; a huge page is not touched for a few bytes."""
        if size_bytes > _SMALL_BYTES:
            return self._pages()[:size_bytes]
        found: memoryview | None = getattr(_scratch, "room", None)
        if found is None:
            _scratch.room = found = memoryview(bytearray(_SMALL_BYTES))
        return found[:size_bytes]

    def _move(self, chunk: int, data: memoryview, pieces: list[Part]) -> bool:
        """Fill the pieces from the *data* of the chunk if that is what was saved; say whether."""
        if not self._sums.matches(chunk, crc32c(data)):
            return False
        first, _ = self._sums.bounds(chunk)
        for start, target in pieces:
            _copy(target, data[start - first :])
        return True

    def _pages(self) -> memoryview:
        """Return whole pages for a chunk; they are this thread's, whichever image it reads."""
        size = -(-self._sums.chunk_bytes // PAGE_BYTES) * PAGE_BYTES
        found: memoryview | None = getattr(_scratch, "pages", None)
        if found is None or len(found) < size:
            block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)
            with suppress(OSError):  # a kernel without huge pages; disks read faster into those
                block.madvise(mmap.MADV_HUGEPAGE)
            _scratch.pages = found = memoryview(block)
        return found


def _copy(target: memoryview, source: memoryview) -> None:
    """Fill *target* from the start of *source*; other threads run meanwhile if it is large."""
    if len(target) < _SMALL_BYTES:
        target[:] = source[: len(target)]
        return
    to, of = (ctypes.c_char.from_buffer(memory) for memory in (target, source))
    ctypes.memmove(ctypes.addressof(to), ctypes.addressof(of), len(target))
