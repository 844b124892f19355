"""Single requests to origins: each a seat, a connection, and a thread that works with both.

Streams bring what many requests bring together; who needs one only, comes here.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Generic, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread

from ckptd_daemon.sources.source import Endpoint, Object, TransientError
from ckptd_daemon.transfer.endgame import LOOK_S
from ckptd_daemon.transfer.means import Means
from ckptd_daemon.transfer.pace import Flow
from ckptd_daemon.transfer.progress import Cause, Gauge, Phase
from ckptd_daemon.transfer.stream import Stream
from ckptd_daemon.transfer.streams import IN_USE

V = TypeVar("V")


class Visits:
    """The visits under way; of the event loop."""

    def __init__(self, means: Means) -> None:
        self.means = means
        self.open: set[Visit] = set()
        self._threads = CapacityLimiter(means.config.streams_max)
        self._begun = anyio.Event()

    def __repr__(self) -> str:
        return f"<Visits [{len(self.open)} open]>"

    def begin(
        self, obj: Object, endpoint: Endpoint, gauge: Gauge, is_urgent: Callable[[], bool]
    ) -> Visit:
        """Return a visit for *obj*, or for what will be known of it; whoever has it closes it."""
        visit = Visit(self, obj, endpoint, gauge, is_urgent)
        self.open.add(visit)
        self._begun.set()
        return visit

    async def watch(self) -> None:
        """Interrupt what falls silent, and tell how much comes; runs for ever."""
        while True:
            await self._begun.wait()
            await anyio.sleep(LOOK_S)
            for visit in self.open:
                visit.look(time.monotonic())
            if not self.open:
                self._begun = anyio.Event()

    async def work(self, visit: Visit, work: Callable[[], V]) -> V:
        """Do *work*, which uses the connection of *visit*, in a thread.

        A cancellation interrupts it, and counts once it has ended: it works in memory that is lent.
        """
        job = _Job(work)
        try:
            return await to_thread.run_sync(job, abandon_on_cancel=True, limiter=self._threads)
        except anyio.get_cancelled_exc_class():
            visit.stream.interrupt()
            with anyio.CancelScope(shield=True):
                await job.end()
            raise


class Visit:
    """A seat at a host and a connection to it, for one request."""

    def __init__(
        self,
        visits: Visits,
        obj: Object,
        endpoint: Endpoint,
        gauge: Gauge,
        is_urgent: Callable[[], bool],
    ) -> None:
        self.gauge = gauge
        self._visits = visits
        self._means = means = visits.means
        self._is_public = obj.is_public
        self._endpoint = endpoint
        pace = means.pacer.pace([obj.url, endpoint.url], self._held, Flow(is_urgent))
        self.stream = Stream(obj, endpoint, pace, means.config)
        self._stack = ExitStack()
        self._share = self._stack.enter_context(
            means.hosts.share(endpoint.url, lambda: obj.size_bytes or 0, is_urgent=is_urgent)
        )
        self._told_bytes = 0

    async def connect(self) -> None:
        """Take a seat and a connection, one that is there already if there is.

        Raises `TransientError` or `ChangedError`.
        """
        if self.stream.is_connected:
            return
        if not self._share.take_nowait():
            phase = self.gauge.phase
            self.gauge.enter(Phase.WAITING, Cause.STREAMS, IN_USE)
            await self._share.take()
            self.gauge.enter(phase)
        idle = self._means.idle.take(self._endpoint, is_public=self._is_public)
        if idle is not None:
            self.stream.take_up(idle)
            return
        means = self._means
        addresses = await means.edges.of(*self.stream.next_hop, means.config.connect_s)
        connect = functools.partial(self.stream.connect, addresses)
        await to_thread.run_sync(connect, limiter=means.connecting, abandon_on_cancel=True)

    def look(self, now: float) -> None:
        """Tell how much came since the last look, and end a silence that is too long."""
        if self.stream.is_silent(now):
            self.stream.interrupt()
        self.gauge.read()  # a sample for its rate, also when nobody asks
        received = self.stream.received_bytes
        self._share.received(received - self._told_bytes, is_held=self.gauge.is_held)
        self._told_bytes = received

    def failed(self, error: TransientError) -> None:
        """Have all others heed what the host asks for, and where it lets connections down."""
        self._means.brakes.hold(self._endpoint.url, error.retry_after_s)
        if error.is_throttled:
            self._share.throttled()
        elif not self.stream.is_interrupted:
            self._means.edges.blame(self.stream.address)

    def leave(self) -> None:
        """Have all that was to come; seat and connection are for others from here on."""
        if self not in self._visits.open:
            return
        self.look(time.monotonic())
        self._means.brakes.hold(self._endpoint.url, self.stream.pause_s)
        if (used := self.stream.release()) is not None:
            self._means.idle.put(used, self._endpoint, is_public=self._is_public)
        self.close()

    def close(self) -> None:
        """End it, wherever it is; harmless after the end."""
        self._visits.open.discard(self)
        self.stream.interrupt()
        self.stream.close()
        self._stack.close()
        self.gauge.streams = 0

    def _held(self, limit: str, wait_s: float) -> None:
        self.gauge.held(limit, wait_s)


class _Job(Generic[V]):
    """Work that a thread has begun, or is not to begin any more."""

    def __init__(self, work: Callable[[], V]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._turn = threading.Lock()  # of whoever comes first: the thread, or who calls it off
        self._ended = anyio.Event()

    def __call__(self) -> V:
        if not self._turn.acquire(blocking=False):
            raise InterruptedError  # and nobody listens
        try:
            return self._work()
        finally:
            self._loop.call_soon_threadsafe(self._ended.set)

    async def end(self) -> None:
        """Wait until it has ended, or will never begin."""
        if not self._turn.acquire(blocking=False):
            await self._ended.wait()
