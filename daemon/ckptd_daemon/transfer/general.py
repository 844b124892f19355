"""The general way to one object's bytes: one reply at a time, by the source's own client."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from ckptd_daemon.sources.source import BrakedError, NoRangesError, Object, TransientError
from ckptd_daemon.store.partials import DamagedError, Partial
from ckptd_daemon.transfer.demand import Demand, Wishes
from ckptd_daemon.transfer.hosts import Share
from ckptd_daemon.transfer.means import GENERAL_BLOCK_BYTES, Means
from ckptd_daemon.transfer.pace import Flow
from ckptd_daemon.transfer.progress import Cause, Gauge, Phase
from ckptd_daemon.transfer.reply import Reply
from ckptd_daemon.transfer.retry import Damages, Patience, unbraked
from ckptd_daemon.transfer.streams import IN_USE
from ckptd_proto import errors

logger = logging.getLogger(__name__)

REFUSALS = (
    errors.Unauthenticated,
    errors.PermissionDenied,
    errors.NotFound,
    errors.FailedPrecondition,
)
"""What an origin may say once by mistake: it counts if it says so again, with nothing between."""


class General:
    """The one connection of a flight that goes the general way."""

    def __init__(
        self,
        means: Means,
        make_room: Callable[[str, int], Awaitable[None]],
        obj: Object,
        partial: Partial,
        gauge: Gauge,
        demand: Demand,
    ) -> None:
        self._means = means
        self._make_room = make_room
        self._object = obj
        self._partial = partial
        self._gauge = gauge
        self._demand = demand
        self._urls = [obj.url] if obj.direct is None else [obj.url, obj.direct.url]
        self._wishes = Wishes(demand, partial, is_whole=not obj.is_rangeable)
        self._pace = means.pacer.pace([obj.url], gauge.held, Flow(demand.is_awaited))
        is_giving = functools.partial(means.hosts.is_giving, self._urls[-1])
        self._patience = Patience(obj.title, means.config.retries, is_giving, self._has_bytes)
        self._damages = Damages(obj.title)
        self._reading = anyio.CancelScope()
        self._refused_at_bytes = -1

    async def fill(self) -> int:
        """Bring what is still missing; returns the object's size at the end."""
        obj, partial, gauge = self._object, self._partial, self._gauge
        hosts, is_awaited = self._means.hosts, self._demand.is_awaited
        with hosts.share(self._urls[-1], self._left_bytes, self._recall, is_awaited) as share:
            while obj.size_bytes is None or partial.missing():
                if self._wishes.is_whole:
                    partial.forget()
                gauge.enter(Phase.WAITING, reason="what was asked for so far is here")
                first = await self._wishes.first()
                await self._unbraked(*self._urls)
                stopped_at = await self._brought(first, share)
                if obj.size_bytes is None and stopped_at is not None:
                    return stopped_at
            return obj.size_bytes

    async def _brought(self, first: int, share: Share) -> int | None:
        """Read one reply from chunk *first* on; returns where it stopped, None if it failed."""
        landed = len(self._partial.landed)
        try:
            with anyio.CancelScope() as self._reading:
                return await self._read(first, share)
        except DamagedError as error:
            self._damages.note(error, self._partial.header)
        except NoRangesError:
            self._wishes.is_whole = True
        except REFUSALS as error:
            if self._partial.landed_bytes == self._refused_at_bytes:
                raise
            self._refused_at_bytes = self._partial.landed_bytes
            logger.info("%s is asked for once more: %s", self._object.title, error)
        except BrakedError as error:
            await self._unbraked(error.url)
        except TransientError as error:
            if not self._wishes.is_whole and len(self._partial.landed) > landed:
                self._patience.succeeded()
            self._gauge.retry(error)
            await self._patience.wait(error)
        return None

    async def _read(self, first: int, share: Share) -> int:
        means, gauge, wishes = self._means, self._gauge, self._wishes

        def received(n_bytes: int) -> None:
            share.received(n_bytes, is_held=gauge.is_held)

        def goes_on(chunk: int) -> bool:
            return wishes.goes_on(chunk) and (wishes.is_whole or not share.must_give)

        async with _seated(share, gauge), means.general.lend(GENERAL_BLOCK_BYTES) as buffer:
            gauge.enter(Phase.DOWNLOADING)
            reply = Reply(
                self._object, self._partial, buffer, self._make_room, self._pace, received
            )
            return await reply.read(means.source, gauge, first, wishes.landed, goes_on)

    async def _unbraked(self, *urls: str) -> None:
        hold = functools.partial(self._gauge.enter, Phase.WAITING, Cause.THROTTLED)
        await unbraked(self._means.brakes, hold, *urls)

    def _recall(self) -> bool:
        """Leave the seat to others, now; a reply that cannot be joined to another has to end."""
        if not self._wishes.is_whole:
            self._reading.cancel()
        return not self._wishes.is_whole

    def _left_bytes(self) -> int:
        return (self._object.size_bytes or 0) - self._partial.landed_bytes

    def _has_bytes(self) -> bool:
        """Whether some bytes are here that need not come again."""
        return self._object.is_rangeable and bool(self._partial.landed)


@asynccontextmanager
async def _seated(share: Share, gauge: Gauge) -> AsyncIterator[None]:
    """Have a seat inside the block."""
    if not share.take_nowait():
        gauge.enter(Phase.WAITING, Cause.STREAMS, IN_USE)
        await share.take()
    try:
        yield
    finally:
        share.give()
