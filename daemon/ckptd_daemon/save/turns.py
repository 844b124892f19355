"""Who may change something now: one at a time, in the order they came, or the newest first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import anyio

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True, eq=False)
class _Turn:
    number: float
    has_come: anyio.Event = field(default_factory=anyio.Event)


class Turns(Generic[Key]):
    """A queue for each thing that somebody changes or waits for."""

    def __init__(self) -> None:
        self.newest_first = False
        """Whether the greatest number comes next, and not who came first."""
        self._queues: dict[Key, list[_Turn]] = {}

    def __len__(self) -> int:
        return len(self._queues)

    @asynccontextmanager
    async def take(self, key: Key, number: float = 0.0) -> AsyncIterator[None]:
        """Wait for a turn at *key*, and have it inside the block."""
        queue = self._queues.setdefault(key, [])
        turn = _Turn(number)
        queue.append(turn)
        self._go_on(queue)
        try:
            await turn.has_come.wait()
            yield
        finally:
            queue.remove(turn)
            self._go_on(queue)
            if not queue:
                del self._queues[key]

    def _go_on(self, queue: list[_Turn]) -> None:
        """Let the next have its turn, unless somebody has one."""
        if not queue or any(turn.has_come.is_set() for turn in queue):
            return
        following = max(queue, key=lambda turn: turn.number) if self.newest_first else queue[0]
        following.has_come.set()
