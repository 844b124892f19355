"""Parallel streams over the bytes that a partial lacks: lanes are recruited as there are seats."""

from __future__ import annotations

import logging

import anyio
from anyio.abc import TaskGroup

from ckptd_daemon.sources.source import Endpoint, Object
from ckptd_daemon.store.partials import Partial
from ckptd_daemon.transfer.demand import Demand
from ckptd_daemon.transfer.endgame import LOOK_S
from ckptd_daemon.transfer.hosts import Share
from ckptd_daemon.transfer.lane import Crew, Lane
from ckptd_daemon.transfer.means import Means
from ckptd_daemon.transfer.progress import Cause, Gauge, Phase
from ckptd_daemon.transfer.retry import unbraked
from ckptd_daemon.transfer.stream import NotFastError

logger = logging.getLogger(__name__)

IN_USE = "all streams are in use by others"


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
        self._gauge = gauge
        self._demand = demand
        self._crew = Crew(means, obj, endpoint, partial, gauge, demand)
        self._work, self._link = self._crew.work, self._crew.link
        self._failure: Exception | None = None  # the first; it ends the others

    async def fill(self) -> None:
        """Bring what is wanted until all is here; returns early if this path cannot read it."""
        size_bytes = self._object.size_bytes or 0
        self._gauge.done_bytes = lambda: size_bytes - self._work.left_bytes
        url, demand, crew = self._link.endpoint.url, self._demand, self._crew
        with self._means.hosts.share(
            url, self._work.wanted_bytes, crew.recall, demand.is_awaited
        ) as share:
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
        while self._link.is_fast and not self._work.is_done:
            if self._work.is_there():
                if await self._seated(share):
                    self._start(tasks, share)
                continue
            if not self._crew.lanes:
                self._gauge.enter(Phase.WAITING, reason="what was asked for so far is here")
            await self._work.turned()

    def _start(self, tasks: TaskGroup, share: Share) -> None:
        claim = self._work.next(share.reach)
        if claim is None:
            claim = self._work.helped()
            self._crew.relieve()
        if claim is None:
            share.give()
            return
        lane = Lane(self._crew, share, claim)
        self._crew.lanes.add(lane)
        tasks.start_soon(self._run, lane, tasks)

    async def _seated(self, share: Share) -> bool:
        """Wait for a seat while there is work for one; tell whether there is one.

        Nobody sits while the host wants to be left alone: others have use for the seat.
        """
        if not self._link.is_braked and share.take_nowait():
            return True
        async with anyio.create_task_group() as waiting:

            async def leave_without_work() -> None:
                while self._link.is_fast and self._work.is_there():
                    await self._work.turned()
                waiting.cancel_scope.cancel()

            waiting.start_soon(leave_without_work)
            await unbraked(self._means.brakes, self._held, self._link.endpoint.url)
            if not self._crew.lanes:
                self._gauge.enter(Phase.WAITING, Cause.STREAMS, IN_USE)
            await share.take()
            waiting.cancel_scope.cancel()
            return True
        return False

    def _held(self, reason: str) -> None:
        if not self._crew.open:
            self._gauge.enter(Phase.WAITING, Cause.THROTTLED, reason)

    async def _run(self, lane: Lane, tasks: TaskGroup) -> None:
        """Have *lane* work; whatever is wrong ends all lanes."""
        crew = self._crew
        try:
            await lane.run()
            if lane.claim is not None:  # whoever brings it now has to try no more often
                crew.tries.append(lane.patience)
        except NotFastError as error:
            logger.info("%s takes the general path: %s", self._object.title, error)
            self._link.is_fast = False
        except Exception as error:  # noqa: BLE001  re-raised by `fill`
            self._failure = self._failure or error
            tasks.cancel_scope.cancel()
            crew.interrupt()
        finally:
            crew.lanes.remove(lane)
            lane.leave()
            self._work.turn()

    async def _follow(self) -> None:
        """Look again whenever more is wanted."""
        while True:
            await self._demand.moved()
            self._work.turn()

    async def _watch(self, share: Share) -> None:
        """Look after the streams; interrupt all of them when the flight ends."""
        try:
            received = 0
            while True:
                await anyio.sleep(LOOK_S)
                total = self._crew.received_bytes
                is_held = self._gauge.is_held or self._means.buffers.is_short
                share.received(total - received, is_held=is_held)
                received = total
                self._gauge.read()  # a sample for its rate, also when nobody asks
                self._crew.interrupt_silent()
                # a connection more would share a limit of ours
                self._work.look(may_help=not self._gauge.is_held)
        finally:
            self._crew.interrupt()
