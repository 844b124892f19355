"""Reads blobs back and compares every chunk with its checksum, out of everybody's way."""

from __future__ import annotations

import errno
import functools
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import anyio
import anyio.lowlevel
from anyio import to_thread

from ckptd_daemon.store import durable
from ckptd_daemon.store.blob import Blob
from ckptd_daemon.store.blobs import BlobStore
from ckptd_daemon.store.buffers import BLOCK_BYTES, Buffers
from ckptd_proto import errors
from ckptd_proto.crc import crc32c

logger = logging.getLogger(__name__)

Turn = Callable[[], Awaitable[object]]
NICE = 19  # yields the processor, and by it the disk, to everybody else


class Hash(Protocol):
    """What `hashlib` computes."""

    def update(self, data: memoryview, /) -> None:
        """Add *data*."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one blob."""

    blob: Blob
    damaged_chunks: tuple[int, ...]
    quarantine: Path | None
    """Where a damaged one lies now; its sound chunks are taken over when it is fetched again."""


class Scrubber:
    """Checks one blob at a time, in a thread and memory of its own."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._buffers = Buffers(BLOCK_BYTES)

    async def keep(self) -> None:
        """Give its memory back to the system when it is at rest; runs for ever."""
        await self._buffers.keep()

    async def check(
        self, blob: Blob, digest: Hash | None = None, turn: Turn = anyio.lowlevel.checkpoint
    ) -> Finding | None:
        """Read *blob* back, and serve it no more if it is damaged; None if it is gone.

        It is read past the page cache: what counts is what the disk has. *digest* gets its bytes,
        in order, and *turn* is waited for before each chunk.
        """
        fd = await to_thread.run_sync(_opened, blob.path)
        try:
            damaged = (
                range(len(blob.crc32c))
                if fd is None
                else await self._damaged(fd, blob, digest, turn)
            )
            is_here = await to_thread.run_sync(_is_at, blob.path, fd)
        finally:
            if fd is not None:
                os.close(fd)
        if self._store.find(blob.key) is None or not is_here:
            return None
        if not damaged:
            return Finding(blob, (), None)
        self._store.forget(blob.key)  # from this instant
        logger.error("%d chunks of blob %s are damaged", len(damaged), blob.key)
        with anyio.CancelScope(shield=True):
            quarantine = await to_thread.run_sync(self._store.set_aside, blob.path.parent)
        return Finding(blob, tuple(damaged), quarantine)

    async def _damaged(self, fd: int, blob: Blob, digest: Hash | None, turn: Turn) -> Sequence[int]:
        """Return which chunks of *blob*, open as *fd*, are not what was published."""
        damaged = []
        async with self._buffers.lend() as buffer:
            with ThreadPoolExecutor(1, initializer=_step_back) as thread:
                for index, expected in enumerate(blob.crc32c):
                    await turn()
                    start = index * blob.chunk_bytes
                    end = min(start + blob.chunk_bytes, blob.size_bytes)
                    read = functools.partial(_read, fd, blob.path, start, end, buffer, digest)
                    if await to_thread.run_sync(thread.submit(read).result) != expected:
                        damaged.append(index)
        return damaged


def _step_back() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def _opened(path: Path) -> int | None:
    """Open *path*, past the page cache; None if there is no such file."""
    try:
        return durable.open_direct(path, os.O_RDONLY)[0]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unread(path, error) from error


def _is_at(path: Path, fd: int | None) -> bool:
    """Whether *fd* is still what *path* names; for None, whether that still names nothing."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return fd is None
    return fd is not None and os.path.samestat(found, os.fstat(fd))


def _read(
    fd: int, path: Path, start: int, end: int, buffer: memoryview, digest: Hash | None
) -> int | None:
    """Return the CRC32C of `[start, end)`; None if the disk does not give these bytes."""
    crc = 0
    for at in range(start, end, len(buffer)):
        want = min(len(buffer), end - at)
        try:
            got = os.preadv(fd, [buffer], at)
        except OSError as error:
            if error.errno != errno.EIO:
                raise _unread(path, error) from error
            logger.error("%s cannot be read at %d", path, at)
            return None
        if got < want:
            return None
        crc = crc32c(buffer[:want], crc)
        if digest is not None:
            digest.update(buffer[:want])
    return crc


def _unread(path: Path, error: OSError) -> errors.Unavailable:
    why = os.strerror(error.errno or 0)
    return errors.Unavailable(f"{path} could not be read back: {why}; try again")
