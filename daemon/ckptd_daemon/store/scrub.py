"""Reads blobs back and compares every chunk with its checksum, out of everybody's way."""

from __future__ import annotations

import functools
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio import to_thread
from crc32c import crc32c

from ckptd_daemon.store import durable
from ckptd_daemon.store.blobs import Blob, BlobStore
from ckptd_daemon.store.buffers import BLOCK_BYTES, Buffers

logger = logging.getLogger(__name__)

NICE = 19  # yields the processor, and by it the disk, to everybody else


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

    async def check(self, blob: Blob) -> Finding | None:
        """Read *blob* back, and serve it no more if it is damaged; None if it is gone.

        It is read past the page cache: what counts is what the disk has.
        """
        async with self._buffers.lend() as buffer:
            with ThreadPoolExecutor(1, initializer=_step_back) as thread:
                damaged = [
                    index
                    for index, expected in enumerate(blob.crc32c)
                    if await self._crc32c(thread, blob, index, buffer) != expected
                ]
        current = self._store.find(blob.key)
        if current is None or current.path != blob.path:
            return None
        if not damaged:
            return Finding(blob, (), None)
        self._store.forget(blob.key)  # from this instant
        logger.error("%d chunks of blob %s are damaged", len(damaged), blob.key)
        with anyio.CancelScope(shield=True):
            quarantine = await to_thread.run_sync(self._store.set_aside, blob.path.parent)
        return Finding(blob, tuple(damaged), quarantine)

    async def _crc32c(
        self, thread: ThreadPoolExecutor, blob: Blob, index: int, buffer: memoryview
    ) -> int | None:
        start = index * blob.chunk_bytes
        end = min(start + blob.chunk_bytes, blob.size_bytes)
        read = functools.partial(_read, blob.path, start, end, buffer)
        return await to_thread.run_sync(thread.submit(read).result)


def _step_back() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def _read(path: Path, start: int, end: int, buffer: memoryview) -> int | None:
    """Return the CRC32C of `[start, end)`; None if the disk does not give these bytes."""
    try:
        fd, _ = durable.open_direct(path, os.O_RDONLY)
    except OSError:
        return None
    crc = 0
    try:
        for at in range(start, end, len(buffer)):
            want = min(len(buffer), end - at)
            if os.preadv(fd, [buffer], at) < want:
                return None
            crc = crc32c(buffer[:want], crc)
    except OSError:
        logger.exception("%s cannot be read", path)
        return None
    finally:
        os.close(fd)
    return crc
