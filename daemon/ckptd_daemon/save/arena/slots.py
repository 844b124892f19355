"""Slots: the files in shared memory that ranks copy their images into, one at a time each.

Everything that touches the memory of a slot is here; who may have one is the arena's affair.
"""

from __future__ import annotations

import logging
import mmap
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckptd_daemon.save.arena import headers
from ckptd_daemon.store import durable
from ckptd_proto import errors

logger = logging.getLogger(__name__)

_SUFFIX: Final = ".slot"


@dataclass(frozen=True, slots=True)
class SlotFile:
    """An open file of shared memory; all its pages exist."""

    id: str
    path: Path
    fd: int
    size_bytes: int
    view: mmap.mmap
    """The memory, to be read: mapped as long as it is open, so that a save does not pay for it."""

    def seal(self, header: bytes) -> None:
        """Write *header*: from now on a later daemon takes the slot for full."""
        durable.pwrite_all(self.fd, memoryview(header), 0)

    def keep(self) -> None:
        """Note that what is sealed is committed: a later daemon finds it, and finishes nothing."""
        durable.pwrite_all(self.fd, memoryview(headers.KEPT), 0)

    def unseal(self) -> None:
        """Make the slot one that a later daemon throws away."""
        durable.pwrite_all(self.fd, memoryview(bytes(headers.PAGE_BYTES)), 0)

    def destroy(self) -> None:
        """Give the memory back, even where a client still maps it."""
        durable.release(self.fd, self.size_bytes)
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Leave the memory to whoever comes next."""
        self.view.close()
        os.close(self.fd)


def own_directory(directory: Path) -> None:
    """Create the directory of slots, ours alone; raises `FailedPrecondition` if it is not.

    It lies where everybody may write, so somebody else may have been there before.
    """
    with durable.explained(directory):
        directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        text = f"{directory} is not a private directory of user {os.geteuid()}; remove it"
        raise errors.FailedPrecondition(text)


def create(directory: Path, size_bytes: int) -> SlotFile:
    """Return a new slot, its memory really allocated; raises `ResourceExhausted`, never SIGBUS."""
    path = directory / f"{secrets.token_hex(8)}{_SUFFIX}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if not durable.preallocate(fd, size_bytes):
            text = f"the filesystem of {directory} cannot reserve space; set another `arena_dir`"
            raise errors.FailedPrecondition(text)
    except BaseException:
        path.unlink()
        os.close(fd)
        raise
    return _opened(path, fd, size_bytes)


def survivors(directory: Path) -> Iterator[tuple[SlotFile, headers.Header]]:
    """Yield what an earlier daemon left sealed, the latest last; remove what it left unsealed.

    A slot sealed by a newer daemon is left alone, for that one to finish.
    """
    for path in sorted(directory.iterdir(), key=lambda path: path.lstat().st_mtime_ns):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            start = os.pread(fd, headers.PAGE_BYTES, 0)
            header = headers.decode(os.pread(fd, headers.needed_bytes(start), 0))
        except headers.NewerFormat as newer:
            text = "%s was sealed in format %s by a newer ckptd and is left alone; start that one"
            logger.error(text, path, newer)
            os.close(fd)
            continue
        if header is None:
            durable.release(fd, os.fstat(fd).st_size)
            path.unlink()
            os.close(fd)
        else:
            yield _opened(path, fd, os.fstat(fd).st_size), header


def _opened(path: Path, fd: int, size_bytes: int) -> SlotFile:
    view = mmap.mmap(fd, size_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
    return SlotFile(path.stem, path, fd, size_bytes, view)
