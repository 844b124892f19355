"""Who may change a run now: one at a time, in the order they came."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from ckptd_daemon.save.places import Place


class Turns:
    """A lock for each run that somebody changes or waits for."""

    def __init__(self) -> None:
        self._locks: dict[Place, anyio.Lock] = {}

    def __len__(self) -> int:
        return len(self._locks)

    @asynccontextmanager
    async def take(self, place: Place) -> AsyncIterator[None]:
        """Wait for a turn at *place*, and have it inside the block."""
        lock = self._locks.setdefault(place, anyio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and lock.statistics().tasks_waiting == 0:
                self._locks.pop(place, None)
