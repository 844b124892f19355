"""Parallel streams over the bytes that a partial lacks; decided here, done by their threads."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from ckptd_daemon.sources.http import refusal
from ckptd_daemon.sources.source import ChangedError, Endpoint, Object, TransientError
from ckptd_daemon.store.buffers import BLOCK_BYTES
from ckptd_daemon.store.partials import DamagedError, Partial
from ckptd_daemon.transfer.abilities import STRIKES
from ckptd_daemon.transfer.demand import Demand
from ckptd_daemon.transfer.endgame import LOOK_S, EndGame
from ckptd_daemon.transfer.hosts import Share
from ckptd_daemon.transfer.means import Means
from ckptd_daemon.transfer.plan import Claim, Plan
from ckptd_daemon.transfer.progress import Cause, Gauge, Phase
from ckptd_daemon.transfer.retry import Damages, Patience, delay_s, patiently, unbraked
from ckptd_daemon.transfer.stream import NotFastError, RefusedError, StaleError, Stream

logger = logging.getLogger(__name__)

IN_USE = "all streams are in use by others"
BLOCKS_BYTES = 160 << 20  # of all streams together
BLOCK_MIN_BYTES = 2 << 20


@dataclass(eq=False, slots=True)
class Lane:
    """One connection's work: what it has to bring, and what it waits for."""

    claim: Claim | None
    patience: Patience
    failed_at: int
    """Where it began, or broke off last."""
    refusals: int = 0
    """In a row."""
    is_recalled: bool = False
    """Somebody else is to have its seat."""
    stream: Stream | None = None
    resting: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    def interrupt(self) -> None:
        """End what it does now, be it waiting."""
        self.resting.cancel()
        if self.stream is not None:
            self.stream.interrupt()


class Streams:
    """The streams of one flight."""

    def __init__(
        self,
        means: Means,
        obj: Object,
        endpoint: Endpoint,
        partial: Partial,
        gauge: Gauge,
        demand: Demand,
    ) -> None:
        self._means = means
        self._object = obj
        self._endpoint = endpoint
        self._partial = partial
        self._gauge = gauge
        self._demand = demand
        self._plan = Plan(partial.header, partial.missing())
        self._end_game = EndGame(obj.size_bytes or 0)
        self._late: tuple[Claim, int | None] | None = None  # whom to help, and how
        self._damages = Damages(obj.title)
        self._refreshing = anyio.Lock()
        self._left_at_refresh = -1
        self._lanes: set[Lane] = set()
        self._patience: list[Patience] = []  # of lanes that made place while the host is braked
        self._open: set[Stream] = set()
        self._turned = anyio.Event()  # set when there may be something to do
        self._received_bytes = 0  # by streams that are closed
        self._strikes = 0  # odd replies in a row
        self._failure: Exception | None = None  # the first; it ends the others
        self._is_fast = True  # until the origin does what only the general path can read
        self._loop = asyncio.get_running_loop()

    def _tell(self, chunk: int) -> None:
        """Tell whoever waits that *chunk* is here; from any thread."""
        self._loop.call_soon_threadsafe(self._demand.landed, chunk)

    async def fill(self) -> None:
        """Bring what is wanted until all is here; returns early if this path cannot read it."""
        size_bytes = self._object.size_bytes or 0
        self._gauge.done_bytes = lambda: size_bytes - self._plan.left_bytes
        hosts = self._means.hosts
        url, demand = self._endpoint.url, self._demand
        with hosts.share(url, self._wanted_bytes, self._recall, demand.is_awaited) as share:
            async with anyio.create_task_group() as watch:
                watch.start_soon(self._watch, share)
                watch.start_soon(self._follow)
                async with anyio.create_task_group() as tasks:
                    await self._recruit(tasks, share)
                watch.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _recruit(self, tasks: TaskGroup, share: Share) -> None:
        """Start a lane for whatever is wanted and not being brought, until nothing is missing."""
        while self._is_fast and not self._plan.is_done:
            self._turned = anyio.Event()
            if self._has_work():
                if await self._seated(share):
                    self._start(tasks, share)
                continue
            if not self._lanes:
                self._gauge.enter(Phase.WAITING, reason="what was asked for so far is here")
            await self._turned.wait()

    def _start(self, tasks: TaskGroup, share: Share) -> None:
        if (claim := self._next() or self._helped()) is None:
            share.give()
            return
        if self._patience:
            patience = self._patience.pop()
        else:
            retries = self._means.config.retries
            patience = Patience(self._object.title, retries, lambda: bool(self._partial.landed))
        lane = Lane(claim, patience, claim.at)
        self._lanes.add(lane)
        tasks.start_soon(self._pump, lane, tasks, share)

    async def _seated(self, share: Share) -> bool:
        """Wait for a seat while there is work for one; tell whether there is one.

        Nobody sits while the host wants to be left alone: others have use for the seat.
        """
        if not self._is_braked() and share.take_nowait():
            return True
        async with anyio.create_task_group() as waiting:

            async def leave_without_work() -> None:
                while self._is_fast and self._has_work():
                    await self._turned.wait()
                    self._turned = anyio.Event()
                waiting.cancel_scope.cancel()

            waiting.start_soon(leave_without_work)
            await unbraked(self._means.brakes, self._held, self._endpoint.url)
            if not self._lanes:
                self._gauge.enter(Phase.WAITING, Cause.STREAMS, IN_USE)
            await share.take()
            waiting.cancel_scope.cancel()
            return True
        return False

    def _has_work(self) -> bool:
        return self._late is not None or self._unclaimed() is not None

    def _unclaimed(self) -> tuple[int, int] | None:
        return self._plan.next(self._demand.urgent(), is_whole=self._demand.is_whole)

    def _next(self) -> Claim | None:
        found = self._unclaimed()
        return None if found is None else self._plan.claim(*found)

    def _helped(self) -> Claim | None:
        """Claim a part of what would end last, or race it."""
        if self._late is None:
            return None
        (claim, keep_bytes), self._late = self._late, None
        if keep_bytes is None:
            found = self._plan.race(claim)
        else:
            found = self._plan.split(claim, keep_bytes)
        self._relieve()
        return found

    def _wanted_bytes(self) -> int:
        if self._demand.is_whole:
            return self._plan.left_bytes
        return len(self._demand.urgent()) * self._partial.header.chunk_bytes

    def _recall(self) -> None:
        """Have the lane that has most to bring leave its rest to others, now."""
        busy = [(lane.claim.end - lane.claim.got, lane) for lane in self._lanes if lane.claim]
        if busy:
            lane = max(busy, key=lambda pair: pair[0])[1]
            lane.is_recalled = True
            lane.interrupt()

    async def _follow(self) -> None:
        """Look again whenever more is wanted."""
        while True:
            await self._demand.moved()
            self._turned.set()

    async def _watch(self, share: Share) -> None:
        """Look after the streams; interrupt all of them when the flight ends."""
        try:
            received = 0
            while True:
                await anyio.sleep(LOOK_S)
                total = self._received_bytes + sum(one.received_bytes for one in self._open)
                share.received(total - received, is_held=self._gauge.is_held)
                received = total
                self._gauge.read()  # a sample for its rate, also when nobody asks
                self._interrupt_silent()
                self._look()
        finally:
            for lane in self._lanes:
                lane.interrupt()

    def _interrupt_silent(self) -> None:
        for stream in self._open:
            if stream.is_silent(time.monotonic()):
                stream.interrupt()

    def _look(self) -> None:
        claims = self._plan.claims
        self._end_game.look(time.monotonic(), claims)
        if self._gauge.is_held:
            return  # by a limit of ours, which another connection would share
        if self._unclaimed() is None and (help_ := self._end_game.help(claims)) is not None:
            self._late = claims[help_.which], help_.keep_bytes
            self._turned.set()

    def _relieve(self) -> None:
        """Interrupt those whose claim another lane has brought, or taken over."""
        for lane in self._lanes:
            if lane.claim is not None and lane.claim.is_beaten:
                lane.interrupt()

    async def _pump(self, lane: Lane, tasks: TaskGroup, share: Share) -> None:
        """Bring one claim after the other until none is left; whatever is wrong ends all lanes."""
        try:
            while lane.claim is not None and self._is_fast and not self._is_braked():
                await self._bring(lane, share)
            if lane.claim is not None:
                self._patience.append(lane.patience)
        except NotFastError as error:
            logger.info("%s takes the general path: %s", self._object.title, error)
            self._is_fast = False
        except Exception as error:  # noqa: BLE001  re-raised by `fill`
            self._failure = self._failure or error
            tasks.cancel_scope.cancel()
            for other in self._lanes:
                other.interrupt()
        finally:
            self._end(lane)
            self._lanes.remove(lane)
            share.give()
            self._turned.set()

    async def _bring(self, lane: Lane, share: Share) -> None:
        """Bring claims over one connection, until there is none or it breaks."""
        endpoint = self._endpoint
        try:
            async with self._connected(lane, endpoint) as stream:
                while lane.claim is not None and self._may_ask(stream, endpoint):
                    await self._fetch(stream, lane.claim)
                    self._means.brakes.hold(endpoint.url, stream.pause_s)
                    self._strikes = 0
                    lane.patience.succeeded()
                    lane.refusals = 0
                    self._patience.clear()
                    self._advance(lane, share)
        except TransientError as error:
            self._means.brakes.hold(endpoint.url, error.retry_after_s)
            if error.is_throttled:
                share.throttled()
            await self._rest(lane, error, share)
        except StaleError:  # costs no try: the next may be alive, and a new one is never stale
            logger.debug("%s: a connection had been closed while it was idle", self._object.title)
        except DamagedError as error:
            self._damages.note(error, self._partial.header)
            self._plan.redo(error.index)
        except RefusedError as error:
            lane.refusals += 1
            if lane.refusals > 1:  # what the source told anew is refused as well
                with anyio.CancelScope() as lane.resting:
                    await anyio.sleep(delay_s(lane.refusals, random.random()))
            await self._refresh(error, endpoint)
        except NotFastError as error:
            self._strikes += 1
            if self._strikes >= STRIKES:
                raise
            logger.info("%s: an odd reply: %s", self._object.title, error)

    def _may_ask(self, stream: Stream, endpoint: Endpoint) -> bool:
        is_braked = self._means.brakes.left_s(endpoint.url) > 0
        return self._is_fast and stream.is_connected and not is_braked

    def _is_braked(self) -> bool:
        return self._means.brakes.left_s(self._endpoint.url) > 0

    def _held(self, reason: str) -> None:
        if not self._open:
            self._gauge.enter(Phase.WAITING, Cause.THROTTLED, reason)

    async def _fetch(self, stream: Stream, claim: Claim) -> None:
        async with self._means.buffers.lend(self._block_bytes(claim)) as buffer:
            work = functools.partial(stream.fetch, claim, self._partial, buffer, self._tell)
            await to_thread.run_sync(work, limiter=self._means.fetching)

    def _block_bytes(self, claim: Claim) -> int:
        size = BLOCK_BYTES
        while size > BLOCK_MIN_BYTES and size * self._means.hosts.seats > BLOCKS_BYTES:
            size //= 2
        left = claim.end - claim.at
        return left if claim.is_racer else min(size, left)

    def _advance(self, lane: Lane, share: Share) -> None:
        """Be done with a claim, and take the next unless somebody else is to have the seat."""
        self._end(lane)
        lane.claim = None if lane.is_recalled or share.must_give else self._next()
        lane.failed_at = lane.claim.at if lane.claim is not None else 0
        self._relieve()
        self._turned.set()

    def _end(self, lane: Lane) -> None:
        """Be done with what *lane* brings; nobody is to help with it any more."""
        if lane.claim is None:
            return
        self._plan.end(lane.claim)
        if self._late is not None and self._late[0] is lane.claim:
            self._late = None

    async def _rest(self, lane: Lane, error: TransientError, share: Share) -> None:
        """Wait before what broke off is asked for again, unless another lane brings it."""
        if lane.claim is None or lane.claim.is_over or lane.is_recalled:
            self._advance(lane, share)
            return
        if not self._open:
            self._gauge.retry(error)
        with anyio.CancelScope() as lane.resting:
            if lane.claim.at > lane.failed_at:
                lane.failed_at = lane.claim.at
                await lane.patience.breathe()
            else:
                await lane.patience.wait(error)
        if lane.claim.is_over or lane.is_recalled:
            self._advance(lane, share)

    async def _refresh(self, error: RefusedError, refused: Endpoint) -> None:
        """Ask the source where the bytes are by now; one asks for all streams."""
        async with self._refreshing:
            if self._endpoint is not refused:
                return
            left_bytes = self._plan.left_bytes
            if left_bytes == self._left_at_refresh:
                raise refusal(error.status, {}, self._object.title) from error
            self._left_at_refresh = left_bytes
            obj, means = self._object, self._means
            stat = functools.partial(means.source.stat, obj.url, only_public=obj.is_public)
            fresh = await patiently(
                stat,
                obj.url,
                obj.title,
                means.config.retries,
                self._gauge,
                means.brakes,
                means.hosts,
            )
            if fresh.version != obj.version:
                raise ChangedError("the origin has another version by now")
            if fresh.direct is None:
                self._strikes = STRIKES
                raise NotFastError("a proxy by now")
            self._endpoint = fresh.direct

    @asynccontextmanager
    async def _connected(self, lane: Lane, endpoint: Endpoint) -> AsyncIterator[Stream]:
        """Yield a connection, and leave it to others at the end if it has brought what it was to."""
        means, is_public = self._means, self._object.is_public
        pace = means.pacer.pace([self._object.url, endpoint.url], self._gauge.held)
        lane.stream = stream = Stream(self._object, endpoint, pace, means.config)
        try:
            if (idle := means.idle.take(endpoint, is_public=is_public)) is not None:
                stream.take_up(idle)
            else:
                await to_thread.run_sync(
                    stream.connect, limiter=means.connecting, abandon_on_cancel=True
                )
            self._open.add(stream)
            self._gauge.streams = len(self._open)
            self._gauge.enter(Phase.DOWNLOADING)
            yield stream
            if (used := stream.release()) is not None:
                means.idle.put(used, endpoint, is_public=is_public)
        finally:
            lane.stream = None
            self._open.discard(stream)
            self._received_bytes += stream.received_bytes
            self._gauge.streams = len(self._open)
            stream.interrupt()
            stream.close()
