"""Slots: the files in shared memory that ranks copy their images into, one at a time each.

Everything that touches the memory of a slot is here; who may have one is the arena's affair.
"""

from __future__ import annotations

import mmap
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckptd_daemon.save.arena import headers
from ckptd_daemon.store import buffers, durable
from ckptd_proto import errors

SUFFIX: Final = ".slot"
HEAD_SUFFIX: Final = ".head"
_local = threading.local()  # where a writer's thread has the memory that it reads into


@dataclass(frozen=True, slots=True)
class SlotFile:
    """An open file of shared memory; all its pages exist, unless a client has cut it."""

    id: str
    path: Path
    fd: int
    size_bytes: int
    head_fd: int
    """Of the file that says what is in the slot; clients never get it."""
    view: mmap.mmap | None
    """The memory, to be read: mapped as long as it is open, so that a save does not pay for it.

    None if it is another user's, who could cut the file, and so end the daemon: it is read then.
    """

    def take(self, taken: headers.Taken) -> None:
        """Note who writes into the slot from now on; what was in it is void."""
        _write_head(self.head_fd, headers.encode_taken(taken))

    def seal(self, header: bytes) -> None:
        """Write *header*: from now on a later daemon takes the slot for full.

        Raises `DataLoss` if a client has cut it, `ResourceExhausted` if there is no room.
        """
        self.check_whole()
        _write_head(self.head_fd, header)
        self._mark(headers.MARK)

    def keep(self) -> None:
        """Note that what is sealed is committed: a later daemon finds it, and finishes nothing."""
        durable.pwrite_all(self.head_fd, memoryview(headers.KEPT), 0)

    def unseal(self) -> None:
        """Make the slot one that a later daemon throws away."""
        durable.pwrite_all(self.head_fd, memoryview(bytes(headers.PAGE_BYTES)), 0)
        self._mark(bytes(len(headers.MARK)))

    @property
    def is_whole(self) -> bool:
        """It is as long as it was made: nobody has cut it, nor made it longer."""
        return os.fstat(self.fd).st_size == self.size_bytes

    def check_whole(self) -> None:
        """Raise `DataLoss` if a client has cut the file."""
        if (length := os.fstat(self.fd).st_size) < self.size_bytes:
            raise self._cut(length)

    @contextmanager
    def reading(self, offset: int, size_bytes: int) -> Iterator[memoryview]:
        """Give a part of the memory, or a copy, until the thread reads another, of 8 MiB at most.

        Raises `DataLoss` if a client has cut the file.
        """
        if self.view is not None:
            self.check_whole()
            with memoryview(self.view)[offset : offset + size_bytes] as part:
                yield part
            return
        with memoryview(_buffer())[:size_bytes] as part:
            if (count := durable.pread_all(self.fd, part, offset)) < size_bytes:
                raise self._cut(offset + count)
            yield part

    def destroy(self) -> None:
        """Give the memory back, even where a client still maps it."""
        give_back(self.path, self.fd)
        self.close()

    def close(self) -> None:
        """Leave the memory to whoever comes next."""
        if self.view is not None:
            self.view.close()
        os.close(self.fd)
        os.close(self.head_fd)

    def _mark(self, mark: bytes) -> None:
        """Put at the start of the slot what only older daemons look for; it may be lost."""
        with suppress(OSError, errors.CkptdError):
            durable.pwrite_all(self.fd, memoryview(mark), 0)

    def _cut(self, length: int) -> errors.DataLoss:
        text = f"slot {self.id} has {self.size_bytes} bytes and a process has cut it to {length}"
        return errors.DataLoss(f"{text}: what was staged in it is lost; save again")


def own_directory(directory: Path) -> None:
    """Create the directory of slots, ours alone; raises `FailedPrecondition` if it is not.

    It lies where everybody may write, so somebody else may have been there before.
    """
    try:
        with durable.explained(directory):
            directory.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError as error:
        text = (
            f"there is no {directory.parent} to stage saves in; make it, or set another `arena_dir`"
        )
        raise errors.FailedPrecondition(text) from error
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        text = f"{directory} is not a private directory of user {os.geteuid()}; remove it"
        raise errors.FailedPrecondition(text)


def create(directory: Path, size_bytes: int, *, is_mapped: bool = True) -> SlotFile:
    """Return a new slot, its memory really allocated; raises `ResourceExhausted`, never SIGBUS.

    It is not mapped for users whom the daemon need not trust.
    """
    path = directory / f"{secrets.token_hex(8)}{SUFFIX}"
    head_fd = _create(head_of(path), headers.PAGE_BYTES)  # first: a slot without is an older one's
    try:
        fd = _create(path, size_bytes)
    except BaseException:
        head_of(path).unlink()
        os.close(head_fd)
        raise
    return _opened(path, fd, size_bytes, head_fd, is_mapped=is_mapped)


def _create(path: Path, size_bytes: int) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if not durable.preallocate(fd, size_bytes):
            where = path.parent
            text = f"the filesystem of {where} cannot reserve space; set another `arena_dir`"
            raise errors.FailedPrecondition(text)
    except BaseException:
        path.unlink()
        os.close(fd)
        raise
    return fd


def reopen(path: Path, size_bytes: int, *, is_mapped: bool) -> SlotFile:
    """Return a slot that an earlier daemon has made."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    fds: list[int] = []
    try:
        fds += [os.open(one, flags) for one in (path, head_of(path))]
        return _opened(path, fds[0], size_bytes, fds[1], is_mapped=is_mapped)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _opened(path: Path, fd: int, size_bytes: int, head_fd: int, *, is_mapped: bool) -> SlotFile:
    view = mmap.mmap(fd, size_bytes, mmap.MAP_SHARED, mmap.PROT_READ) if is_mapped else None
    return SlotFile(path.stem, path, fd, size_bytes, head_fd, view)


def _write_head(fd: int, head: bytes) -> None:
    """Write *head*, its first page last: killed on the way, the daemon leaves the old one whole.

    One that is longer than a page comes only after one that is not.
    """
    data = memoryview(head)
    durable.pwrite_all(fd, data[headers.PAGE_BYTES :], headers.PAGE_BYTES)
    durable.pwrite_all(fd, data[: headers.PAGE_BYTES], 0)


def head_of(path: Path) -> Path:
    """Return the file that says what is in the slot."""
    return path.with_suffix(HEAD_SUFFIX)


def give_back(path: Path, fd: int) -> None:
    """Give the memory of a slot back, even where a client still maps it."""
    durable.release(fd, os.fstat(fd).st_size)
    path.unlink(missing_ok=True)
    head_of(path).unlink(missing_ok=True)


def _buffer() -> mmap.mmap:
    """Return the memory that this thread reads into: pages, as direct I/O wants them."""
    buffer: mmap.mmap | None = getattr(_local, "buffer", None)
    if buffer is None:
        buffer = _local.buffer = buffers.mapped(is_huge=True)
    return buffer
