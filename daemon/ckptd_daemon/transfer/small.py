"""Objects of one block: asked for, received, checked and published by one thread in one go.

Many small files cost steps, not bytes. So this is the plain case only, without a journal to go on
with: whatever else the origin or the network has in store is left to the long way, which begins
anew and knows how to try again.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import shutil
from collections.abc import Callable
from typing import TypeVar

from ckptd_daemon.sources.brakes import host_of
from ckptd_daemon.sources.source import BrakedError, Object, TransientError
from ckptd_daemon.store.partials import DamagedError, Partial
from ckptd_daemon.transfer.demand import Demand
from ckptd_daemon.transfer.openings import SMALL_BYTES, Openings
from ckptd_daemon.transfer.plan import Plan
from ckptd_daemon.transfer.progress import Cause, Gauge, Phase
from ckptd_daemon.transfer.retry import Patience, unbraked
from ckptd_daemon.transfer.stream import NotFastError, RefusedError, StaleError
from ckptd_daemon.transfer.visits import Visit, Visits

logger = logging.getLogger(__name__)

V = TypeVar("V")


class Small:
    """Brings small objects, each by one visit."""

    def __init__(self, visits: Visits, openings: Openings) -> None:
        self._visits = visits
        self._openings = openings
        self._means = visits.means

    def is_for(self, obj: Object, demand: Demand) -> bool:
        """Tell whether *obj* may come this way: it is small, plain, and all of it is wanted."""
        if obj.direct is None or not obj.accepts_ranges or not demand.is_whole:
            return False
        is_small = 0 < (obj.size_bytes or 0) <= SMALL_BYTES
        return is_small and self._means.abilities.may_be_fast(host_of(obj.direct.url), obj.id)

    async def bring(
        self,
        obj: Object,
        partial: Partial,
        begin: Callable[[], bool],
        finish: Callable[[memoryview], V],
        gauge: Gauge,
        demand: Demand,
    ) -> V | None:
        """Return what *finish* makes of the filled *partial*; it gets the memory that has it, too.

        None if the object has to come the long way, because something went wrong or *begin* says
        so. Both are called in a thread. Nothing is left of the partial but what *finish* made of
        it. Raises `ChangedError`, what these raise, or one of our typed errors.
        """
        assert obj.direct is not None, "is_for"
        means, url = self._means, obj.direct.url
        hold = functools.partial(gauge.enter, Phase.WAITING, Cause.THROTTLED)
        while True:
            visit = self._openings.take(partial.path.name)
            if visit is None:
                await unbraked(means.brakes, hold, url)
                visit = self._visits.begin(obj, obj.direct, gauge, demand.is_awaited)
            visit.gauge = gauge
            try:
                return await self._brought(visit, obj, partial, begin, finish)
            except BrakedError:
                continue
            except TransientError as error:
                visit.failed(error)
                gauge.retry(error)
                failure = error
                break
            except (DamagedError, NotFastError, RefusedError, StaleError) as error:
                logger.debug("%s goes the long way: %s", obj.title, error)
                return None
            finally:
                visit.close()
        is_giving = functools.partial(means.hosts.is_giving, url)
        await Patience(obj.title, means.config.retries, is_giving).wait(failure)
        return None

    async def _brought(
        self,
        visit: Visit,
        obj: Object,
        partial: Partial,
        begin: Callable[[], bool],
        finish: Callable[[memoryview], V],
    ) -> V | None:
        stream, loop = visit.stream, asyncio.get_running_loop()
        await self._connected(visit, obj)
        visit.gauge.enter(Phase.DOWNLOADING)
        visit.gauge.total_bytes, visit.gauge.streams = obj.size_bytes, 1
        visit.gauge.done_bytes = lambda: stream.received_bytes
        claim = Plan(partial.header, [0]).claim(0, obj.size_bytes or 0)
        async with self._means.buffers.lend(claim.end) as buffer:

            def work() -> V | None:
                if not begin():
                    return None
                try:
                    stream.fetch(claim, partial, buffer, bool)
                    loop.call_soon_threadsafe(visit.leave)
                    return finish(buffer[: claim.end])
                except BaseException:
                    shutil.rmtree(partial.path, ignore_errors=True)
                    raise
                finally:
                    partial.close()

            return await self._visits.work(visit, work)

    async def _connected(self, visit: Visit, obj: Object) -> None:
        """Have *visit* connected, at a host that may be asked; raises `BrakedError`."""
        if visit.stream.is_connected:  # it has been asked already
            return
        await visit.connect()
        assert obj.direct is not None, "is_for"
        url = obj.direct.url
        if (left_s := self._means.brakes.left_s(url)) > 0:  # since it waits for its seat
            raise BrakedError(url, left_s)
