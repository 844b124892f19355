"""One connection's work, and the crew of a flight: the lanes that bring one object together."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio import to_thread

from ckptd_daemon.sources.source import Endpoint, Object, TransientError
from ckptd_daemon.store.buffers import BLOCK_BYTES
from ckptd_daemon.store.partials import DamagedError, Partial
from ckptd_daemon.transfer.bottleneck import Spent
from ckptd_daemon.transfer.demand import Demand
from ckptd_daemon.transfer.hosts import Share
from ckptd_daemon.transfer.link import Link
from ckptd_daemon.transfer.means import BLOCKS_BYTES, Means
from ckptd_daemon.transfer.pace import Flow
from ckptd_daemon.transfer.plan import Claim
from ckptd_daemon.transfer.progress import Gauge, Phase
from ckptd_daemon.transfer.retry import Damages, Patience, delay_s
from ckptd_daemon.transfer.stream import NotFastError, RefusedError, StaleError, Stream
from ckptd_daemon.transfer.work import Work

logger = logging.getLogger(__name__)

BLOCK_MIN_BYTES = 2 << 20


class Crew:
    """The lanes of one flight, and what they share."""

    def __init__(
        self,
        means: Means,
        obj: Object,
        endpoint: Endpoint,
        partial: Partial,
        gauge: Gauge,
        demand: Demand,
    ) -> None:
        self.means = means
        self.object = obj
        self.partial = partial
        self.gauge = gauge
        self.work = Work(partial, demand)
        self.link = Link(means, obj, endpoint, self.work, gauge)
        self.flow = Flow(demand.is_awaited)
        self.damages = Damages(obj.title)
        self.lanes: set[Lane] = set()
        self.open: set[Stream] = set()
        self.tries: list[Patience] = []
        """Of lanes that made place while the host is braked."""
        self._demand = demand
        self._closed_bytes = 0  # received by streams that are closed
        self._closed_spent = Spent()  # by these
        gauge.spent, gauge.is_writing = self.spent, self.is_writing
        self._loop = asyncio.get_running_loop()

    @property
    def received_bytes(self) -> int:
        """What came over all connections, also what comes twice."""
        return self._closed_bytes + sum(stream.received_bytes for stream in self.open)

    def spent(self) -> Spent:
        """Return where the time of all connections went so far."""
        now = time.monotonic()
        return sum((stream.time.read(now) for stream in self.open), self._closed_spent)

    def is_writing(self) -> bool:
        """Tell whether all that is open waits for the disk."""
        return bool(self.open) and all(stream.time.is_writing for stream in self.open)

    def patience(self, share: Share) -> Patience:
        """Return the patience of a new lane: that of one before it that made place, if there is."""
        if self.tries:
            return self.tries.pop()
        retries = self.means.config.retries
        return Patience(
            self.object.title, retries, share.is_giving, lambda: bool(self.partial.landed)
        )

    def tell(self, chunk: int) -> None:
        """Tell whoever waits that *chunk* is here; from any thread."""
        self._loop.call_soon_threadsafe(self._demand.landed, chunk)

    def opened(self, stream: Stream) -> None:
        """Count *stream* among those that are open."""
        self.open.add(stream)
        self.gauge.streams = len(self.open)

    def closed(self, stream: Stream) -> None:
        """Count *stream* no more."""
        self.open.discard(stream)
        self._closed_bytes += stream.received_bytes
        self._closed_spent += stream.time.read(time.monotonic())
        self.gauge.streams = len(self.open)

    def recall(self) -> bool:
        """Have the lane that has most to bring leave its rest to others, now."""
        seated = [lane for lane in self.lanes if lane.is_seated]
        busy = [(lane.claim.end - lane.claim.got, lane) for lane in seated if lane.claim]
        if busy:
            lane = max(busy, key=lambda pair: pair[0])[1]
            lane.is_recalled = True
            lane.interrupt()
        return bool(busy)

    def relieve(self) -> None:
        """Interrupt those whose claim another lane has brought, or taken over."""
        for lane in self.lanes:
            if lane.claim is not None and lane.claim.is_beaten:
                lane.interrupt()

    def interrupt_silent(self) -> None:
        """Interrupt the connections on which something should have come."""
        for stream in self.open:
            if stream.is_silent(time.monotonic()):
                self.means.edges.blame(stream.address)
                stream.interrupt()

    def interrupt(self) -> None:
        """End all that is going on."""
        for lane in self.lanes:
            lane.interrupt()


class Lane:
    """Brings one claim after the other, over one connection as long as that lasts."""

    def __init__(self, crew: Crew, share: Share, claim: Claim) -> None:
        self.claim: Claim | None = claim
        self.patience = crew.patience(share)
        self.is_seated = True
        self.is_recalled = False
        """Somebody else is to have its seat."""
        self._crew = crew
        self._share = share
        self._failed_at = claim.at  # where it began, or broke off last
        self._refusals = 0  # in a row
        self._stream: Stream | None = None
        self._resting = anyio.CancelScope()

    def interrupt(self) -> None:
        """End what it does now, be it waiting."""
        self._resting.cancel()
        if self._stream is not None:
            self._stream.interrupt()

    async def run(self) -> None:
        """Work until nothing is left, the host wants to be left alone, or the seat is another's.

        Then `claim` may be left. Raises `NotFastError`, `ChangedError` or one of our typed errors, which concern all lanes.
        """
        link = self._crew.link
        while self.claim and self.is_seated and link.is_fast and not link.is_braked:
            if self.is_recalled:  # before there was a connection to interrupt
                return
            await self._bring(link.endpoint)

    def end(self) -> None:
        """Be done with what it brings."""
        if self.claim is not None:
            self._crew.work.end(self.claim)

    def leave(self) -> None:
        """Be done altogether."""
        self.end()
        if self.is_seated:
            self._share.give()

    async def _bring(self, endpoint: Endpoint) -> None:
        """Bring claims over one connection, until there is none or it breaks."""
        crew = self._crew
        brakes = crew.means.brakes
        try:
            async with self._connected(endpoint) as stream:
                while self.claim is not None and self._may_ask(stream, endpoint):
                    await self._fetch(stream, self.claim)
                    brakes.hold(endpoint.url, stream.pause_s)
                    self._succeeded()
                    self._advance()
        except TransientError as error:
            brakes.hold(endpoint.url, error.retry_after_s)
            if error.is_throttled:
                self._share.throttled()
            await self._rest(error)
        except StaleError:  # costs no try: the next may be alive, and a new one is never stale
            logger.debug("%s: a connection had been closed while it was idle", crew.object.title)
        except DamagedError as error:
            crew.damages.note(error, crew.partial.header)
            crew.work.redo(error.index)
        except RefusedError as error:
            await self._refused(error, endpoint)
        except NotFastError as error:
            crew.link.answered_oddly(error)

    def _may_ask(self, stream: Stream, endpoint: Endpoint) -> bool:
        is_braked = self._crew.means.brakes.left_s(endpoint.url) > 0
        may_stay = not (is_braked or self.is_recalled)
        return self._crew.link.is_fast and stream.is_connected and may_stay

    @asynccontextmanager
    async def _connected(self, endpoint: Endpoint) -> AsyncIterator[Stream]:
        """Yield a connection, and leave it to others at the end if it has brought what it was to."""
        crew, means, is_public = self._crew, self._crew.means, self._crew.object.is_public
        pace = means.pacer.pace([crew.object.url, endpoint.url], crew.gauge.held, crew.flow)
        self._stream = stream = Stream(crew.object, endpoint, pace, means.config)
        try:
            if (idle := means.idle.take(endpoint, is_public=is_public)) is not None:
                stream.take_up(idle)
            else:
                addresses = await means.edges.of(*stream.next_hop, means.config.connect_s)
                connect = functools.partial(stream.connect, addresses)
                await to_thread.run_sync(connect, limiter=means.connecting, abandon_on_cancel=True)
            crew.opened(stream)
            crew.gauge.enter(Phase.DOWNLOADING)
            yield stream
            if (used := stream.release()) is not None:
                means.idle.put(used, endpoint, is_public=is_public)
        except TransientError as error:
            if not (error.is_throttled or stream.is_interrupted):
                means.edges.blame(stream.address)
            raise
        finally:
            self._stream = None
            crew.closed(stream)
            stream.interrupt()
            stream.close()

    async def _fetch(self, stream: Stream, claim: Claim) -> None:
        crew, means = self._crew, self._crew.means
        async with means.buffers.lend(_block_bytes(claim, means.hosts.seats)) as buffer:
            work = functools.partial(stream.fetch, claim, crew.partial, buffer, crew.tell)
            await to_thread.run_sync(work, limiter=means.fetching)
        if stream.late_s is not None:
            crew.work.learn(stream.late_s, stream.bytes_per_s)

    def _succeeded(self) -> None:
        self._crew.link.answered()
        self._share.gave()
        self._crew.tries.clear()
        self.patience.succeeded()
        self._refusals = 0

    def _advance(self) -> None:
        """Be done with a claim, and take the next unless somebody else is to have the seat."""
        self.end()
        work = self._crew.work
        is_to_go = self.is_recalled or self._share.must_give
        self.claim = None if is_to_go else work.next(self._share.reach)
        self._failed_at = self.claim.at if self.claim is not None else 0
        self._crew.relieve()
        work.turn()

    async def _rest(self, error: TransientError) -> None:
        """Wait before what broke off is asked for again, unless another lane brings it."""
        if self.claim is None or self.claim.is_over or self.is_recalled:
            self._advance()
            return
        if not self._crew.open:
            self._crew.gauge.retry(error)
        async with self._standing():
            if self.claim.at > self._failed_at:
                self._failed_at = self.claim.at
                await self.patience.breathe()
            else:
                await self.patience.wait(error)

    async def _refused(self, error: RefusedError, endpoint: Endpoint) -> None:
        """Have the link asked for anew; waits before, if that one is refused as well."""
        self._refusals += 1
        async with self._standing():
            if self._refusals > 1:
                await anyio.sleep(delay_s(self._refusals, random.random()))
            await self._crew.link.refresh(error, endpoint)

    @asynccontextmanager
    async def _standing(self) -> AsyncIterator[None]:
        """Leave the seat to other flights inside the block; `interrupt` ends that without one."""
        self.is_seated = False
        with anyio.CancelScope() as self._resting:
            async with self._share.stood():
                yield
            self.is_seated = True


def _block_bytes(claim: Claim, seats: int) -> int:
    """Return how much memory a stream may have, so that twice as many of them may have as much."""
    size = BLOCK_BYTES
    while size > BLOCK_MIN_BYTES and size * 2 * seats > BLOCKS_BYTES:
        size //= 2
    left = claim.end - claim.at
    return left if claim.is_racer else min(size, left)
