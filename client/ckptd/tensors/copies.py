"""Where the bytes of one image come from: a part of shared memory, or a file."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckptd.tensors.residency import is_resident
from ckptd_proto import errors

PAGE_BYTES: Final = 4096
_NOT_DIRECT: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


@dataclass(frozen=True, slots=True)
class Copy:
    """An image in memory: a part of an open file of it."""

    fd: int
    offset: int

    def read(self, target: memoryview, start: int) -> None:
        """Fill *target*; raises `DataLoss` if there is less."""
        if _read_all(self.fd, target, self.offset + start, len(target)) < len(target):
            raise errors.DataLoss("its memory was given back")


class File:
    """An image's file, opened when it is needed."""

    def __init__(self, path: Path, opened: Callable[[], int]) -> None:
        """*opened* gives a descriptor of it, another one each time."""
        self.path = path
        self._opened = opened
        self._fd = -1
        self._direct_fd = -1

    def is_near(self, start: int, length: int) -> bool:
        """Say whether most of a range, which starts with a page, is in the page cache."""
        with self._explained():
            return is_resident(self._buffered(), start, length)

    def bring(self, start: int, length: int) -> None:
        """Have the page cache read what it lacks of a range, all of it at once."""
        os.posix_fadvise(self._buffered(), start, length, os.POSIX_FADV_WILLNEED)

    def read(self, target: memoryview, start: int) -> None:
        """Fill *target* with the bytes at *start*; raises `DataLoss` and why it cannot be read."""
        with self._explained():
            count = _read_all(self._buffered(), target, start, len(target))
        self._check(count, len(target), start)

    def read_past(self, pages: memoryview, length: int, start: int) -> None:
        """Fill *length* bytes of whole *pages* as `read`, past the page cache where that is possible.

        *start* is that of a page, too.
        """
        if self._direct_fd < 0:
            self._direct_fd = self._open()
            _set_direct(self._direct_fd, on=True)
        whole = pages[: -(-length // PAGE_BYTES) * PAGE_BYTES]
        with self._explained():
            try:
                count = _read_all(self._direct_fd, whole, start, length)
            except OSError as error:
                if error.errno not in _NOT_DIRECT:
                    raise
                _set_direct(self._direct_fd, on=False)
                count = _read_all(self._direct_fd, whole, start, length)
        self._check(count, length, start)

    def close(self) -> None:
        """Close it, if it was opened."""
        for fd in (self._fd, self._direct_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct_fd = -1

    def _buffered(self) -> int:
        if self._fd < 0:
            self._fd = self._open()
        return self._fd

    def _open(self) -> int:
        try:
            return self._opened()
        except FileNotFoundError as error:
            raise errors.DataLoss(f"{self.path} is missing; load another step") from error
        except OSError as error:
            raise unreadable(self.path, error) from error

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unreadable(self.path, error) from error

    def _check(self, count: int, length: int, start: int) -> None:
        if count < length:
            text = f"{self.path} is cut off at byte {start + count}; load another step"
            raise errors.DataLoss(text)


def _read_all(fd: int, target: memoryview, start: int, least: int) -> int:
    """Fill *target*, at least so much of it, and return how much there was."""
    done = 0
    while done < least:
        count = os.preadv(fd, [target[done:]], start + done)
        if count == 0:
            break
        done += count
    return done


def _set_direct(fd: int, *, on: bool) -> None:
    """Have *fd* read past the page cache, where the filesystem can, or not."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    except OSError as error:
        if error.errno not in _NOT_DIRECT:
            raise


def unreadable(path: Path, error: OSError) -> errors.CkptdError:
    """Return why *path* cannot be read, as our error."""
    if isinstance(error, PermissionError):
        text = f"this process may not read {path}: give it the right, or load as another user"
        return errors.PermissionDenied(text)
    return errors.Unavailable(f"cannot read {path} ({error}); try again or load another step")
