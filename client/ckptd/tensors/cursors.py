"""One image, read by one thread from the best copy there is, each chunk checked where it arrives."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from crc32c import crc32c

from ckptd_proto import errors

_LARGE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Copy:
    """An image in memory: a part of an open file of it."""

    fd: int
    offset: int

    def read(self, target: memoryview, start: int) -> None:
        """Fill *target*; raises `DataLoss` if there is less."""
        if _read_all(self.fd, target, self.offset + start) < len(target):
            raise errors.DataLoss("its memory was given back")


class File:
    """An image's file, opened when it is needed."""

    def __init__(self, path: Path, opened: Callable[[], int]) -> None:
        self.path = path
        self._opened = opened
        self._fd = -1

    def read(self, target: memoryview, start: int) -> None:
        """Fill *target* with the bytes at *start*; raises `DataLoss` and why it cannot be read."""
        try:
            if self._fd < 0:
                self._fd = self._opened()
            count = _read_all(self._fd, target, start)
        except FileNotFoundError as error:
            raise errors.DataLoss(f"{self.path} is missing; load another step") from error
        except OSError as error:
            raise unreadable(self.path, error) from error
        if count < len(target):
            text = f"{self.path} is cut off at byte {start + count}; load another step"
            raise errors.DataLoss(text)

    def close(self) -> None:
        """Close it, if it was opened."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


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

    def matches(self, chunk: int, data: memoryview) -> bool:
        """Say whether *data* is what was written as *chunk*."""
        return chunk < len(self._crcs) and crc32c(data) == self._crcs[chunk]


class Cursor:
    """Reads one image; keeps the chunk it read last, for the small pieces that share it."""

    def __init__(
        self, sums: Sums, file: File, memory: Copy | None, on_corrupt: Callable[[str], None]
    ) -> None:
        """Read from *memory*, if given, until it proves bad: then *on_corrupt* hears why."""
        self._sums = sums
        self._file = file
        self._memory = memory
        self._on_corrupt = on_corrupt
        self._scratch = memoryview(b"")
        self._scratch_chunk = -1

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill *target* with the bytes at *offset*; raises `DataLoss`, naming file and chunk."""
        end = offset + len(target)
        if end > self._sums.size_bytes:
            where = f"{self._file.path} ends at {self._sums.size_bytes}"
            raise errors.DataLoss(f"{where}, before {end}; load another step")
        at = offset
        while at < end:
            chunk = at // self._sums.chunk_bytes
            start, stop = self._sums.bounds(chunk)
            until = min(stop, end)
            # by way of a chunk that stays in the cache: only what is checked gets into the target
            _move(target[at - offset : until - offset], self._chunk(chunk)[at - start :])
            at = until

    def _chunk(self, chunk: int) -> memoryview:
        if chunk != self._scratch_chunk:
            start, stop = self._sums.bounds(chunk)
            self._scratch_chunk = -1
            if len(self._scratch) < stop - start:
                self._scratch = memoryview(bytearray(self._sums.chunk_bytes))
            self._read_chunk(chunk, self._scratch[: stop - start])
            self._scratch_chunk = chunk
        return self._scratch

    def _read_chunk(self, chunk: int, target: memoryview) -> None:
        start, stop = self._sums.bounds(chunk)
        if self._memory is not None and not self._read_memory(chunk, target, self._memory):
            self._memory = None
        if self._memory is not None:
            return
        self._file.read(target, start)
        if not self._sums.matches(chunk, target):
            text = (
                f"{self._file.path} is corrupt in chunk {chunk} (bytes {start} to {stop}): its"
                " CRC32C is not the one that was saved; load another step"
            )
            raise errors.DataLoss(text)

    def _read_memory(self, chunk: int, target: memoryview, memory: Copy) -> bool:
        """Fill *target*; say whether it is what was saved."""
        start, stop = self._sums.bounds(chunk)
        try:
            memory.read(target, start)
        except (errors.DataLoss, OSError) as error:
            self._on_corrupt(str(error))
            return False
        if not self._sums.matches(chunk, target):
            self._on_corrupt(f"the CRC32C of chunk {chunk} (bytes {start} to {stop}) is another")
            return False
        return True


def _move(target: memoryview, source: memoryview) -> None:
    """Fill *target* from the start of *source*; other threads run meanwhile if it is large."""
    if len(target) < _LARGE_BYTES:
        target[:] = source[: len(target)]
        return
    to, of = (ctypes.c_char.from_buffer(memory) for memory in (target, source))
    ctypes.memmove(ctypes.addressof(to), ctypes.addressof(of), len(target))


def _read_all(fd: int, target: memoryview, start: int) -> int:
    """Fill *target* and return how much there was."""
    done = 0
    while done < len(target):
        count = os.preadv(fd, [target[done:]], start + done)
        if count == 0:
            break
        done += count
    return done


def unreadable(path: Path, error: OSError) -> errors.CkptdError:
    """Return why *path* cannot be read, as our error."""
    if isinstance(error, PermissionError):
        text = f"this process may not read {path}: give it the right, or load as another user"
        return errors.PermissionDenied(text)
    return errors.Unavailable(f"cannot read {path} ({error}); try again or load another step")
