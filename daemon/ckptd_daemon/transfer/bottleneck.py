"""Where the time of a flight's connections goes, and what of that is its bottleneck."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

WINDOW_S = 4.0  # over how long it is judged
SEEN_S = 1.0  # no judgement before
MOST = 0.5  # of the connections' time
BUSY = 0.8  # of the CPU that there is


class Work(StrEnum):
    """What a connection does."""

    RECEIVING = "receiving"
    WRITING = "writing"


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds, of all connections together."""

    wire_s: float = 0.0
    """Receiving, or waiting for what should come."""
    disk_s: float = 0.0
    """Writing it down."""
    cpu_s: float = 0.0
    """On a CPU, in either."""

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.wire_s + other.wire_s, self.disk_s + other.disk_s, self.cpu_s + other.cpu_s
        )

    def __sub__(self, other: Spent) -> Spent:
        return self + Spent(-other.wire_s, -other.disk_s, -other.cpu_s)

    @property
    def busy_s(self) -> float:
        """In all."""
        return self.wire_s + self.disk_s


class Stopwatch:
    """Takes the time of one connection: in the thread that works with it, read by any other."""

    def __init__(self) -> None:
        self._spent = {Work.RECEIVING: 0.0, Work.WRITING: 0.0}
        self._cpu_s = 0.0
        self._doing: tuple[Work, float] | None = None  # since when

    @property
    def is_writing(self) -> bool:
        """Whether it waits for the disk just now."""
        doing = self._doing
        return doing is not None and doing[0] is Work.WRITING

    @contextmanager
    def at(self, work: Work) -> Iterator[None]:
        """Do *work* inside the block."""
        began, cpu = time.monotonic(), time.thread_time()
        self._doing = work, began
        try:
            yield
        finally:
            self._doing = None
            self._spent[work] += time.monotonic() - began
            self._cpu_s += time.thread_time() - cpu

    def read(self, now: float) -> Spent:
        """Return what was spent by *now*, of the monotonic clock."""
        doing = self._doing
        spent = dict(self._spent)
        if doing is not None:
            spent[doing[0]] += max(0.0, now - doing[1])
        return Spent(spent[Work.RECEIVING], spent[Work.WRITING], self._cpu_s)


class Recent:
    """What was spent in the last few seconds; pure: whoever calls says what time it is."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, Spent]] = deque()

    def begin(self) -> None:
        """Forget all of it."""
        self._samples.clear()

    def read(self, spent: Spent, now: float) -> tuple[Spent, float]:
        """Note that so much is *spent* by *now*; returns what was lately, and in how long."""
        if self._samples and spent.busy_s < self._samples[-1][1].busy_s:  # of others
            self.begin()
        self._samples.append((now, spent))
        while len(self._samples) > 2 and self._samples[1][0] <= now - WINDOW_S:
            self._samples.popleft()
        at, then = self._samples[0]
        return spent - then, now - at


def words(spent: Spent, elapsed_s: float, cores: int) -> tuple[str, str]:
    """Name the bottleneck, in a word and in a sentence, of who *spent* so much in *elapsed_s*.

    Both are empty if there is too little to go by.
    """
    if elapsed_s < SEEN_S or spent.busy_s < elapsed_s * MOST:
        return "", ""
    if spent.cpu_s >= BUSY * min(spent.busy_s, cores * elapsed_s):
        return "cpu", f"receiving takes the CPU: {spent.cpu_s / elapsed_s:.1f} of {cores} cores"
    if spent.disk_s >= MOST * spent.busy_s:
        share = spent.disk_s / spent.busy_s
        return "disk", f"the disk takes its time: {share:.0%} of the streams' goes into writing"
    return "network", "the origin, or the network on the way, brings no more"


def cores() -> int:
    """Return how many the daemon may use."""
    return len(os.sched_getaffinity(0))
