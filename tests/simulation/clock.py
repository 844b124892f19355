"""Virtual time: what happens next happens now."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count


class Clock:
    """What is to happen, and when; at the same time, in the order in which it was said."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), act))

    def run(self, until_s: float) -> None:
        """Let it all happen, also what comes of it, but nothing that comes after *until_s*."""
        while self._events and self.now < until_s:
            self.now, _, act = heapq.heappop(self._events)
            act()
