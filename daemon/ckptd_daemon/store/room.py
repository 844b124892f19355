"""Disk space for what is about to be fetched: booked before the first byte, evicting if need be."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio import to_thread

from ckptd_daemon.store import durable
from ckptd_daemon.store.blobs import BlobStore
from ckptd_daemon.store.evict import Entry, Room, victims

logger = logging.getLogger(__name__)


class Space:
    """The room below the cache directory."""

    def __init__(
        self,
        store: BlobStore,
        is_held: Callable[[str], bool],
        *,
        quota_bytes: int | None,
        floor_bytes: int,
    ) -> None:
        self._store = store
        self._is_held = is_held  # leased, or in the air
        self._quota_bytes = quota_bytes
        self._floor_bytes = floor_bytes
        self._booking = anyio.Lock()  # one at a time, so that the numbers stay true

    @asynccontextmanager
    async def book(self, key: str, size_bytes: int) -> AsyncIterator[None]:
        """Make room for *key* to grow to *size_bytes*; allocate it inside the block.

        Raises `ResourceExhausted` with the numbers.
        """
        async with self._booking:
            for path in await to_thread.run_sync(self._chosen, key, size_bytes):
                if not self._is_held(path.name):  # still, after the thread
                    logger.info("evicting %s", path.name)
                    self._store.forget(path.name)
                    await to_thread.run_sync(self._store.remove, path)
            yield

    async def make(self, size_bytes: int) -> None:
        """Make room for *size_bytes* more of something whose size nobody knew beforehand."""
        async with self.book("", size_bytes):
            return

    def _chosen(self, key: str, size_bytes: int) -> list[Path]:
        partials = {path.name: path for path in self._store.partial_paths()}
        sizes = {name: _allocated_bytes(path) for name, path in partials.items()}
        blobs = {blob.key: blob for blob in self._store}
        room = Room(
            free=durable.free_bytes(self._store.partials_dir),
            floor=self._floor_bytes,
            quota=self._quota_bytes,
            used=sum(sizes.values()) + sum(blob.size_bytes for blob in blobs.values()),
        )
        entries = [Entry(blob.key, blob.size_bytes, blob.used_at) for blob in blobs.values()]
        entries += [Entry(name, sizes[name], _changed_at(path)) for name, path in partials.items()]
        candidates = [entry for entry in entries if not self._is_held(entry.key)]
        need = max(0, size_bytes - sizes.get(key, 0))
        chosen = victims(candidates, room, need)
        return [partials.get(entry.key) or blobs[entry.key].path.parent for entry in chosen]


def _allocated_bytes(path: Path) -> int:
    try:
        return sum(file.stat().st_blocks * 512 for file in path.iterdir())
    except FileNotFoundError:  # published or dropped meanwhile
        return 0


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
