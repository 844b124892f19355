"""How far a flight is: written by the flight alone, read by whoever likes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from math import inf

from ckptd_daemon.sources.source import TransientError
from ckptd_daemon.transfer.bottleneck import Recent, Spent, cores, words

RATE_S = 4.0  # over how long the rate is taken
SAMPLE_S = 0.1
HELD_S = 1.0  # for so long after its end a wait for a limit counts
SILENT_S = 3.0  # after so long without a byte there is something to explain
TOTAL_END = 1 << 63  # no total is told from here on
CORES = cores()


class Phase(StrEnum):
    """What a fetch is doing."""

    RESOLVING = "resolving"
    WAITING = "waiting"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    RETRYING = "retrying"


class Cause(StrEnum):
    """Why a fetch does not move, or not faster."""

    NONE = ""
    ORIGIN = "origin"
    """It failed for now, or is silent."""
    THROTTLED = "throttled"
    """The origin asked us to slow down."""
    DISK = "disk"
    """No room on the disk, or it is the bottleneck."""
    NETWORK = "network"
    """The network is the bottleneck, or the origin behind it."""
    CPU = "cpu"
    """Receiving takes all of it that there is."""
    QUOTA = "quota"
    """The cache is full of what is held."""
    HASH = "hash"
    """Everything is here; it is being checked."""
    LIMIT = "limit"
    """A bandwidth limit of the configuration."""
    STREAMS = "streams"
    """All streams that there may be are in use by others."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One reading of a gauge."""

    phase: Phase
    done_bytes: int = 0
    total_bytes: int | None = None
    streams: int = 0
    reason: str = ""
    """Why it waits, in words; empty while it moves."""
    cause: Cause = Cause.NONE
    rate_bytes_per_s: float = 0.0
    """Over the last few seconds; 0 unless bytes come."""

    @property
    def eta_s(self) -> float | None:
        """Seconds until all bytes are here at this rate; None if nobody can tell."""
        if self.total_bytes is None or self.rate_bytes_per_s <= 0:
            return None
        return max(0, self.total_bytes - self.done_bytes) / self.rate_bytes_per_s


class Rate:
    """Bytes per second over the last few seconds; pure: whoever calls says what time it is.

    Every reader adds a sample, so any number of them sees the same.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._moved_at = 0.0

    def begin(self, done_bytes: int, now: float) -> None:
        """Forget what was before *now*."""
        self._samples.clear()
        self._samples.append((now, done_bytes))
        self._moved_at = now

    def silent_s(self, now: float) -> float:
        """Return for how long no reading has been higher than the one before."""
        return now - self._moved_at

    def read(self, done_bytes: int, now: float) -> float:
        """Note that *done_bytes* are here by *now*; returns the rate."""
        if not self._samples or done_bytes < self._samples[-1][1]:  # thrown away, to come again
            self.begin(done_bytes, now)
        if done_bytes > self._samples[-1][1]:
            self._moved_at = now
        if now - self._samples[-1][0] >= SAMPLE_S:
            self._samples.append((now, done_bytes))
        while len(self._samples) > 2 and self._samples[1][0] <= now - RATE_S:
            self._samples.popleft()
        at, bytes_then = self._samples[0]
        return (done_bytes - bytes_then) / (now - at) if now - at >= SAMPLE_S else 0.0


class Gauge:
    """What one flight says about itself; of the event loop, but for `held`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rate = Rate()
        self._counter: Callable[[], int] = int
        self._held = ("", 0.0)  # by which limit, and until when
        self._recent = Recent()
        self._judged, self._judged_at = ("", ""), -inf
        self.spent: Callable[[], Spent] = Spent
        """Where the time of its connections went so far."""
        self.is_writing: Callable[[], bool] = bool
        """Whether all of them wait for the disk."""
        self.parts: Callable[[], list[Progress]] = list
        """Readings of what this consists of, if it has streams by its parts only."""
        self.sizes: Callable[[], Iterable[int | None]] = lambda: [None]
        """Of what this consists of, as far as they are known; for where `total_bytes` is not."""
        self.title = ""
        self.phase = Phase.RESOLVING
        self.total_bytes: int | None = None
        self.streams = 0
        self.cause = Cause.NONE
        self.reason = ""
        self.note = ""
        """What happened before this began; told with the reason."""

    @property
    def done_bytes(self) -> Callable[[], int]:
        """What counts the bytes that are here; its first reading is no speed."""
        return self._counter

    @done_bytes.setter
    def done_bytes(self, counter: Callable[[], int]) -> None:
        self._counter = counter
        self._rate.begin(counter(), self._clock())

    def enter(self, phase: Phase, cause: Cause = Cause.NONE, reason: str = "") -> None:
        """Be in *phase*, and say why that takes time if it is not for work alone."""
        if phase is Phase.DOWNLOADING and self.phase is not phase:
            self._rate.begin(self._counter(), self._clock())
            self._recent.begin()
            self._judged_at = -inf
        self.phase, self.cause, self.reason = phase, cause, reason

    def retry(self, error: TransientError) -> None:
        """Be about to ask again."""
        cause = Cause.THROTTLED if error.is_throttled else Cause.ORIGIN
        self.enter(Phase.RETRYING, cause, str(error))

    def held(self, limit: str, wait_s: float) -> None:
        """Be held up by *limit* for *wait_s*; from any thread."""
        self._held = (limit, self._clock() + wait_s + HELD_S)

    @property
    def is_held(self) -> bool:
        """Whether a limit holds the bytes up."""
        return self._clock() < self._held[1]

    def _slowed(self, now: float) -> tuple[Cause, str]:
        """Say what holds the bytes up that should come."""
        if self.is_held:
            return Cause.LIMIT, f"held to {self._held[0]}"
        if now - self._judged_at >= SAMPLE_S:  # a thousand may listen
            self._judged_at, self._judged = now, words(*self._recent.read(self.spent(), now), CORES)
        if (silent_s := self._rate.silent_s(now)) < SILENT_S:
            return Cause(self._judged[0]), self._judged[1]
        if self.is_writing():
            return Cause.DISK, f"the disk takes its time: nothing was written for {silent_s:.0f} s"
        return Cause.ORIGIN, f"nothing has come for {silent_s:.0f} s"

    def read(self) -> Progress:
        """Return where the flight is now."""
        now, done_bytes = self._clock(), self._counter()
        rate, phase, cause, reason = 0.0, self.phase, self.cause, self.reason
        parts = self.parts()
        if phase is Phase.DOWNLOADING:
            rate = self._rate.read(done_bytes, now)
            if cause is Cause.NONE and parts:
                phase, cause, reason = _all(parts)
            elif cause is Cause.NONE:
                cause, reason = self._slowed(now)
        reason = "; ".join(filter(None, (self.note, reason)))
        streams = self.streams + sum(part.streams for part in parts)
        total_bytes = _sum(self.sizes()) if self.total_bytes is None else self.total_bytes
        return Progress(phase, done_bytes, total_bytes, streams, reason, cause, rate)


def _sum(sizes: Iterable[int | None]) -> int | None:
    """Return the sum of *sizes* once all of them are known, and if it is one that can be told."""
    total = 0
    for size_bytes in sizes:
        if size_bytes is None:
            return None
        total += size_bytes
    return total if total < TOTAL_END else None


def _all(parts: list[Progress]) -> tuple[Phase, Cause, str]:
    """Say what *parts* do together: they move if one does, held by a limit if one is."""
    moving = [part for part in parts if part.phase is Phase.DOWNLOADING]
    held = [part for part in moving if part.cause is Cause.LIMIT]
    if moving and not held and any(part.cause is Cause.NONE for part in moving):
        return Phase.DOWNLOADING, Cause.NONE, ""
    moving.sort(key=lambda part: part.cause is Cause.ORIGIN)  # others move, if as slowly
    one = (held or moving or parts)[0]
    return one.phase, one.cause, one.reason
