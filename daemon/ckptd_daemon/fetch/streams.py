"""Parallel streams over the bytes that a partial lacks; decided here, done by their threads."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.abc import TaskGroup

from ckptd_daemon.config import Config
from ckptd_daemon.fetch.demand import Demand
from ckptd_daemon.fetch.pace import Pacer
from ckptd_daemon.fetch.plan import Claim, Plan
from ckptd_daemon.fetch.progress import Gauge, Phase
from ckptd_daemon.fetch.retry import Damages, Patience
from ckptd_daemon.fetch.stream import NotFastError, Stream
from ckptd_daemon.sources.source import Endpoint, Object, TransientError
from ckptd_daemon.store.buffers import Buffers
from ckptd_daemon.store.partials import DamagedError, Partial

logger = logging.getLogger(__name__)

THREADS = 64  # of the whole daemon
STALL_CHECKS = 8  # per `stall_s`


class Threads:
    """Room for the threads of all streams of the daemon."""

    def __init__(self) -> None:
        self.fetching = CapacityLimiter(THREADS)
        self.connecting = CapacityLimiter(THREADS)  # an abandoned one keeps its place until it ends


@dataclass(slots=True)
class Lane:
    """What one pump has to bring now."""

    claim: Claim | None
    failed_at: int = -1
    """Where it broke off last."""


class Streams:
    """The streams of one flight."""

    def __init__(
        self,
        config: Config,
        obj: Object,
        endpoint: Endpoint,
        partial: Partial,
        gauge: Gauge,
        demand: Demand,
        pacer: Pacer,
    ) -> None:
        self._config = config
        self._object = obj
        self._endpoint = endpoint
        self._partial = partial
        self._gauge = gauge
        self._demand = demand
        self._pacer = pacer
        self._plan = Plan(partial.header, partial.missing())
        self._damages = Damages(obj.title)
        self._pumps = 0
        self._open: set[Stream] = set()
        self._turned = anyio.Event()  # set when a pump has ended
        self._failure: Exception | None = None  # the first; it ends the others
        self._is_fast = True  # until the origin does what only the general path can read
        loop = asyncio.get_running_loop()
        self._tell = functools.partial(loop.call_soon_threadsafe, demand.landed)

    async def fill(self, buffers: Buffers, threads: Threads) -> None:
        """Bring what is wanted until all is here; returns early if this path cannot read it."""
        size_bytes = self._object.size_bytes or 0
        self._gauge.done_bytes = lambda: size_bytes - self._plan.left_bytes
        async with anyio.create_task_group() as watch:
            watch.start_soon(self._watch)
            watch.start_soon(self._follow)
            async with anyio.create_task_group() as tasks:
                await self._recruit(tasks, buffers, threads)
            watch.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _recruit(self, tasks: TaskGroup, buffers: Buffers, threads: Threads) -> None:
        """Start a pump for whatever is wanted and not being brought, until nothing is missing."""
        while self._is_fast and not self._plan.is_done:
            self._turned = anyio.Event()
            if self._pumps < self._config.streams and (claim := self._next()) is not None:
                self._pumps += 1
                tasks.start_soon(self._pump, Lane(claim), tasks, buffers, threads)
                continue
            if not self._pumps:
                self._gauge.enter(Phase.WAITING, reason="what was asked for so far is here")
            await self._turned.wait()

    def _next(self) -> Claim | None:
        found = self._plan.next(self._demand.urgent(), is_whole=self._demand.is_whole)
        return None if found is None else self._plan.claim(*found)

    async def _follow(self) -> None:
        """Look again whenever more is wanted."""
        while True:
            await self._demand.moved()
            self._turned.set()

    async def _watch(self) -> None:
        """Interrupt streams that stall, and all of them when the flight ends."""
        try:
            while True:
                await anyio.sleep(self._config.stall_s / STALL_CHECKS)
                for stream in list(self._open):
                    if stream.is_silent(time.monotonic() - self._config.stall_s):
                        stream.interrupt()
        finally:
            self._interrupt()

    def _interrupt(self) -> None:
        for stream in self._open:
            stream.interrupt()

    async def _pump(self, lane: Lane, tasks: TaskGroup, buffers: Buffers, threads: Threads) -> None:
        """Bring one claim after the other until none is left; whatever is wrong ends all pumps."""
        patience = Patience(self._object.title, self._config.retries)
        try:
            while lane.claim is not None and self._is_fast:
                await self._bring(lane, buffers, threads, patience)
        except NotFastError as error:
            logger.info("%s takes the general path: %s", self._object.title, error)
            self._is_fast = False
        except Exception as error:  # noqa: BLE001  re-raised by `fill`
            self._failure = self._failure or error
            tasks.cancel_scope.cancel()
            self._interrupt()
        finally:
            if lane.claim is not None:
                self._plan.end(lane.claim)
            self._pumps -= 1
            self._turned.set()

    async def _bring(
        self, lane: Lane, buffers: Buffers, threads: Threads, patience: Patience
    ) -> None:
        """Bring claims over one connection, until there is none or it breaks."""
        try:
            async with self._connected(threads) as stream:
                while lane.claim is not None and self._is_fast and stream.is_connected:
                    async with buffers.lend() as buffer:
                        work = functools.partial(
                            stream.fetch, lane.claim, self._partial, buffer, self._tell
                        )
                        await to_thread.run_sync(work, limiter=threads.fetching)
                    self._plan.end(lane.claim)
                    patience.succeeded()
                    lane.claim = self._next()
        except TransientError as error:
            if lane.claim is not None and lane.claim.at != lane.failed_at:
                patience.succeeded()
                lane.failed_at = lane.claim.at
            if not self._open:
                self._gauge.retry(error)
            await patience.wait(error)
        except DamagedError as error:
            self._damages.note(error, self._partial.header)
            self._plan.redo(error.index)

    @asynccontextmanager
    async def _connected(self, threads: Threads) -> AsyncIterator[Stream]:
        """Yield a new connection, and close it at the end."""
        pace = self._pacer.pace([self._object.url, self._endpoint.url], self._gauge.held)
        stream = Stream(
            self._object, self._endpoint, pace, self._config.connect_s, self._config.stall_s
        )
        try:
            await to_thread.run_sync(
                stream.connect, limiter=threads.connecting, abandon_on_cancel=True
            )
            self._open.add(stream)
            self._gauge.streams = len(self._open)
            self._gauge.enter(Phase.DOWNLOADING)
            yield stream
        finally:
            self._open.discard(stream)
            self._gauge.streams = len(self._open)
            stream.interrupt()
            stream.close()
