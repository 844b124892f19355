"""Many fetches of one caller, side by side: what has ended, as it ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import anyio

from ckptd_daemon.fetch.call import Call, Handed, Request
from ckptd_daemon.transfer.progress import Gauge, Phase, Progress
from ckptd_proto import errors

SIDE_BY_SIDE = 64
GATHER_S = 0.02  # small files end in quick succession: one message tells of several
FEW = 8  # while so few are left, each is told at once


class Batch:
    """The fetches of one caller that wants all of them or none."""

    def __init__(self, requests: Iterable[Request], begin: Callable[[Request], Call]) -> None:
        self._ahead = deque(enumerate(requests))
        self._begin = begin
        self._count = len(self._ahead)
        self._going: dict[int, Call] = {}
        self._done_bytes = 0
        self._moved = anyio.Event()
        self._readings: list[Progress] = []
        self._gauge = Gauge()
        self._gauge.done_bytes = self._count_bytes
        self._gauge.parts = lambda: self._readings
        self._gauge.sizes = self._sizes
        self._gauge.enter(Phase.DOWNLOADING)

    @property
    def is_done(self) -> bool:
        """Whether everything has been handed over."""
        return not (self._ahead or self._going)

    async def news(self, timeout_s: float) -> list[tuple[int, Handed]]:
        """Return what has ended since, by its place; waits for something, at most *timeout_s*.

        Raises the error of the first that failed, and says which it was.
        """
        self._fill()
        with anyio.move_on_after(timeout_s):
            await self._moved.wait()
            if len(self._going) > FEW:
                await anyio.sleep(GATHER_S)
        self._moved = anyio.Event()
        ended = [index for index, call in self._going.items() if call.has_ended]
        landed = [(index, self._result(index)) for index in ended]
        self._fill()
        return landed

    def progress(self) -> Progress:
        """Return how far all of it is; the total is known when the last has begun."""
        self._readings = [call.progress() for call in self._going.values()]
        return self._gauge.read()

    def leave(self) -> None:
        """Stop caring about what is going on; harmless after the end."""
        self._ahead.clear()
        for call in self._going.values():
            call.leave()

    def _count_bytes(self) -> int:
        return self._done_bytes + sum(reading.done_bytes for reading in self._readings)

    def _sizes(self) -> list[int | None]:
        coming = [None] if self._ahead else [reading.total_bytes for reading in self._readings]
        return [self._done_bytes, *coming]

    def _fill(self) -> None:
        while self._ahead and len(self._going) < SIDE_BY_SIDE:
            index, request = self._ahead.popleft()
            call = self._going[index] = self._begin(request)
            call.on_end = self._poke

    def _poke(self) -> None:
        self._moved.set()

    def _result(self, index: int) -> Handed:
        try:
            handed = self._going.pop(index).result()
        except errors.CkptdError as error:
            raise error.renewed(f"reference {index + 1} of {self._count}: {error}") from error
        self._done_bytes += handed.size_bytes
        return handed
