"""Bandwidth limits: when the next bytes may be brought, so that all together keep to the rates.

A limit may change at any time, also under those who sleep in it.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import anyio

BURST_S = 0.1  # what may come at once after a rest, in time at the limit's rate
PIECE_S = 0.05
ROUNDING_BYTES = 0.01
PIECE_MIN_BYTES = 4 << 10
PIECE_MAX_BYTES = 4 << 20  # each costs some turns at the interpreter's lock


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes per second: of the daemon, and by host or host:port."""

    total: int | None = None
    sources: Mapping[str, int] = field(default_factory=dict)


@dataclass(eq=False, slots=True, frozen=True)
class Flow:
    """All that is brought for one object: however many connections do, it has one share."""

    is_urgent: Callable[[], bool] = lambda: True
    """Tells whether somebody waits for it; asked by any thread."""


@dataclass(eq=False, slots=True, frozen=True)
class Ticket:
    """A place in the queue of one limit."""

    n_bytes: float
    flow: Flow
    start: float
    """What its flow had claimed before, in bytes; never less than others that were served."""


class Bucket:
    """One limit; pure: whoever calls says what time it is, in seconds.

    Start-time fair queueing (Goyal, Vin and Cheng, 1996): flows that wait get equal shares,
    whatever the number of their tickets, and those of one flow are served in the order they came.
    What nobody waits for comes last.
    """

    def __init__(self, name: str, rate: float, now: float) -> None:
        self.name = name
        self.rate: float | None = rate
        self._free_bytes = 0.0  # may go now
        self._waiting: dict[Ticket, None] = {}  # first come first
        self._served = 0.0  # the start of what was served last
        self._claimed: dict[Flow, float] = {}  # where the tickets of a flow end
        self._at = now

    def __str__(self) -> str:
        return f"{(self.rate or 0) / 1e6:g} MB/s by {self.name}"

    def change(self, rate: float | None, now: float) -> None:
        """Serve at *rate* from *now* on; None: whatever is claimed."""
        self._fill(now)
        self.rate = rate

    def claim(self, n_bytes: float, now: float, flow: Flow) -> Ticket:
        """Ask for *n_bytes*; returns the ticket to wait with."""
        self._fill(now)
        start = max(self._served, self._claimed.get(flow, 0.0))
        self._claimed[flow] = start + n_bytes
        ticket = Ticket(n_bytes, flow, start)
        self._waiting[ticket] = None
        return ticket

    def give_back(self, ticket: Ticket) -> None:
        """Have never claimed what *ticket* is for, be it granted or not."""
        if ticket.flow in self._claimed:
            self._claimed[ticket.flow] -= ticket.n_bytes
        if ticket in self._waiting:
            del self._waiting[ticket]
        elif self.rate is not None:
            self._free_bytes += ticket.n_bytes

    def wait_s(self, ticket: Ticket, now: float) -> float:
        """Return how long *ticket* has to wait still if rate and queue stay; 0: no longer."""
        self._fill(now)
        if self.rate is None:
            self._serve(ticket)
            return 0.0
        missing_bytes = self._before_bytes(ticket) + ticket.n_bytes - self._free_bytes
        if missing_bytes > ROUNDING_BYTES:
            return missing_bytes / self.rate
        self._free_bytes -= ticket.n_bytes
        self._serve(ticket)
        return 0.0

    def _before_bytes(self, ticket: Ticket) -> float:
        """Return how much is to go before *ticket*."""
        is_late = {flow: not flow.is_urgent() for flow in {one.flow for one in self._waiting}}
        turn = is_late[ticket.flow], ticket.start
        before_bytes, is_passed = 0.0, False
        for one in self._waiting:
            if one is ticket:
                is_passed = True
                continue
            its_turn = is_late[one.flow], one.start
            if its_turn < turn or (its_turn == turn and not is_passed):
                before_bytes += one.n_bytes
        return before_bytes

    def _serve(self, ticket: Ticket) -> None:
        del self._waiting[ticket]
        self._served = max(self._served, ticket.start)
        self._claimed = {flow: end for flow, end in self._claimed.items() if end > self._served}

    def _fill(self, now: float) -> None:
        if self.rate is None:
            self._free_bytes = 0.0
        else:
            free_bytes = self._free_bytes + self.rate * max(0.0, now - self._at)
            waiting_bytes = sum(ticket.n_bytes for ticket in self._waiting)
            self._free_bytes = min(free_bytes, waiting_bytes + self.rate * BURST_S)
        self._at = now


class Pacer:
    """The limits of the daemon, for all that brings bytes; any thread may ask."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._total: Bucket | None = None
        self._sources: dict[str, Bucket] = {}
        self._sleeping: set[threading.Event] = set()
        self.changed = anyio.Event()
        """Set, and another one from then on, when the limits change; of the event loop."""
        self.limits = Limits()
        self.change(limits)

    @property
    def is_limiting(self) -> bool:
        """Whether there is any limit."""
        return self._total is not None or bool(self._sources)

    def change(self, limits: Limits) -> None:
        """Keep to *limits* from now on; called on the event loop."""
        with self._lock:
            now = self._clock()
            self._total = _changed(self._total, "max_bytes_per_s", limits.total, now)
            rates = {host.lower(): rate for host, rate in limits.sources.items()}
            for host in rates.keys() | self._sources.keys():
                name = f"source_max_bytes_per_s of {host}"
                bucket = _changed(self._sources.pop(host, None), name, rates.get(host), now)
                if bucket is not None:
                    self._sources[host] = bucket
            self.limits = Limits(limits.total, rates)
            for event in self._sleeping:
                event.set()
        self.changed.set()
        self.changed = anyio.Event()

    def pace(self, urls: Iterable[str], held: Callable[[str, float], object], flow: Flow) -> Pace:
        """Return the pace for what comes of *flow* from *urls*: each limit of theirs, and the daemon's.

        *held* gets to know, in whatever thread, what holds the bytes up and for how many seconds.
        """
        return Pace(self, frozenset(name for url in urls for name in _names(url)), held, flow)

    def buckets(self, sources: frozenset[str]) -> list[Bucket]:
        """Return the limits on bytes from *sources*, the daemon's last."""
        with self._lock:
            found = [bucket for name, bucket in self._sources.items() if name in sources]
            return found if self._total is None else [*found, self._total]

    def claim(self, bucket: Bucket, n_bytes: int, flow: Flow) -> Ticket:
        """Claim *n_bytes* of *bucket*; returns the ticket."""
        with self._lock:
            return bucket.claim(n_bytes, self._clock(), flow)

    def give_back(self, claimed: Iterable[tuple[Bucket, Ticket]]) -> None:
        """Have claimed nothing of what *claimed* says."""
        with self._lock:
            for bucket, ticket in claimed:
                bucket.give_back(ticket)

    def wait_s(self, bucket: Bucket, ticket: Ticket) -> float:
        """Return how long *ticket* has to wait still."""
        with self._lock:
            return bucket.wait_s(ticket, self._clock())

    @contextmanager
    def waking(self, event: threading.Event) -> Iterator[None]:
        """Set *event* at every change of the limits inside the block."""
        with self._lock:
            self._sleeping.add(event)
        try:
            yield
        finally:
            with self._lock:
                self._sleeping.discard(event)


class Pace:
    """One connection's way through the limits."""

    def __init__(
        self,
        pacer: Pacer,
        sources: frozenset[str],
        held: Callable[[str, float], object],
        flow: Flow,
    ) -> None:
        self._pacer = pacer
        self._sources = sources
        self._held = held
        self._flow = flow
        self._woken = threading.Event()
        self._is_interrupted = False

    @property
    def is_limited(self) -> bool:
        """Whether a limit is set to what comes this way."""
        return bool(self._rates())

    @property
    def piece_bytes(self) -> int:
        """How many bytes to take at once at most, so that they flow smoothly."""
        rates = self._rates()
        if not rates:
            return PIECE_MAX_BYTES
        return max(PIECE_MIN_BYTES, min(PIECE_MAX_BYTES, int(min(rates) * PIECE_S)))

    def take(self, n_bytes: int) -> None:
        """Block until *n_bytes* more may come; `InterruptedError` if it must not wait any more."""
        if not self._pacer.is_limiting:
            return
        with self._pacer.waking(self._woken), closing(self._waits(n_bytes)) as waits:
            for wait_s in waits:
                if not self._is_interrupted:
                    self._woken.wait(wait_s)
                if self._is_interrupted:
                    raise InterruptedError(errno.EINTR, "interrupted")
                self._woken.clear()

    async def take_async(self, n_bytes: int) -> None:
        """Wait until *n_bytes* more may come; for tasks of the event loop."""
        with closing(self._waits(n_bytes)) as waits:
            for wait_s in waits:
                with anyio.move_on_after(wait_s):
                    await self._pacer.changed.wait()

    def interrupt(self) -> None:
        """End a `take` that blocks in another thread, and every later one that would."""
        self._is_interrupted = True
        self._woken.set()

    def _rates(self) -> list[float]:
        if not self._pacer.is_limiting:
            return []
        return [bucket.rate for bucket in self._pacer.buckets(self._sources) if bucket.rate]

    def _waits(self, n_bytes: int) -> Generator[float, None, None]:
        """Yield how long to wait, again and again, until *n_bytes* are granted by every limit."""
        claimed: list[tuple[Bucket, Ticket]] = []
        is_granted = False
        try:
            for bucket in self._pacer.buckets(self._sources):
                ticket = self._pacer.claim(bucket, n_bytes, self._flow)
                claimed.append((bucket, ticket))
                while (wait_s := self._pacer.wait_s(bucket, ticket)) > 0:
                    self._held(str(bucket), wait_s)
                    yield wait_s
            is_granted = True
        finally:
            if not is_granted:
                self._pacer.give_back(claimed)


def _changed(bucket: Bucket | None, name: str, rate: int | None, now: float) -> Bucket | None:
    """Return the bucket for *rate*: the same one if there is one, as others sleep in it."""
    if bucket is not None:
        bucket.change(rate, now)
        return bucket if rate is not None else None
    return None if rate is None else Bucket(name, rate, now)


def _names(url: str) -> set[str]:
    """Return how a limit may call the source of *url*."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    bare = f"[{host}]" if ":" in host else host
    return {host, bare, f"{bare}:{port}"}
