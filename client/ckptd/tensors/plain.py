"""The files of a checkpoint that nobody vouches for, such as torch's own."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from typing_extensions import Buffer

from ckptd_proto import errors


class PlainFiles:
    """The files of one directory, read as they are: there are no checksums to compare with."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def cursor(self, name: str) -> Iterator[PlainCursor]:
        """Open a file; raises `DataLoss` if it is missing."""
        path = self._directory / name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise errors.DataLoss(f"{path} is missing; load another checkpoint") from error
        except OSError as error:
            raise errors.Unavailable(f"cannot read {path} ({error}); try again") from error
        try:
            yield PlainCursor(path, fd)
        finally:
            os.close(fd)


class PlainCursor:
    """Reads one file."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd

    def fill(self, parts: Iterable[tuple[int, memoryview]]) -> None:
        """Fill each target with the bytes at its offset; as `read_into`."""
        for offset, target in parts:
            self.read_into(target, offset)

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill *target* with the bytes at *offset*; raises `DataLoss` if the file ends before."""
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self._fd, [target[done:]], offset + done)
            except OSError as error:
                raise errors.Unavailable(f"cannot read {self._path} ({error})") from error
            if count == 0:
                text = f"{self._path} is cut off at byte {offset + done}; load another checkpoint"
                raise errors.DataLoss(text)
            done += count


class Window(io.RawIOBase):
    """A range of a file, as a file of its own."""

    def __init__(self, cursor: PlainCursor, start: int, length: int) -> None:
        self._cursor = cursor
        self._start = start
        self._length = length
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to *offset* within the range."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = max(0, origin + offset)
        return self._at

    def tell(self) -> int:
        """Return where the next byte comes from."""
        return self._at

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill *buffer* as far as the range goes."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._length - self._at))
        self._cursor.read_into(view[:count], self._start + self._at)
        self._at += count
        return count
