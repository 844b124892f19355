"""Fills a partial from its origin: parallel streams where that is sound, else one reply."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from ckptd_daemon.sources.brakes import host_of
from ckptd_daemon.sources.source import NoRangesError, Object, TransientError
from ckptd_daemon.store.partials import DamagedError, Partial
from ckptd_daemon.transfer.demand import Demand, Wishes
from ckptd_daemon.transfer.hosts import Share
from ckptd_daemon.transfer.means import GENERAL_BLOCK_BYTES, Means
from ckptd_daemon.transfer.progress import Cause, Gauge, Phase
from ckptd_daemon.transfer.reply import Reply
from ckptd_daemon.transfer.retry import Damages, Patience, unbraked
from ckptd_daemon.transfer.streams import IN_USE, Streams
from ckptd_proto import errors

logger = logging.getLogger(__name__)

REFUSALS = (
    errors.Unauthenticated,
    errors.PermissionDenied,
    errors.NotFound,
    errors.FailedPrecondition,
)
"""What an origin may say once by mistake: it counts if it says so again, with nothing between."""


class Downloader:
    """The byte paths of the daemon."""

    def __init__(self, means: Means, make_room: Callable[[str, int], Awaitable[None]]) -> None:
        self._means = means
        self._make_room = make_room

    async def fill(self, obj: Object, partial: Partial, gauge: Gauge, demand: Demand) -> int:
        """Bring what *partial* lacks as *demand* has it; returns the object's size at the end.

        Raises `ChangedError` or one of our typed errors. What has landed stays in any case.
        """
        gauge.enter(Phase.DOWNLOADING)
        gauge.total_bytes = obj.size_bytes
        if obj.is_rangeable and obj.direct is not None:
            abilities, host = self._means.abilities, host_of(obj.direct.url)
            if abilities.may_be_fast(host, obj.id):
                await Streams(self._means, obj, obj.direct, partial, gauge, demand).fill()
                if partial.missing():
                    abilities.is_odd(host, obj.id)
        return await self._fill_general(obj, partial, gauge, demand)

    async def _fill_general(
        self, obj: Object, partial: Partial, gauge: Gauge, demand: Demand
    ) -> int:
        """Bring what is still missing, one reply at a time."""
        means = self._means
        has_bytes = functools.partial(_has_bytes, obj, partial)
        patience = Patience(obj.title, means.config.retries, has_bytes)
        damages = Damages(obj.title)
        wishes = Wishes(demand, partial, is_whole=not obj.is_rangeable)
        pace = means.pacer.pace([obj.url], gauge.held)
        urls = [obj.url] if obj.direct is None else [obj.url, obj.direct.url]
        hold = functools.partial(gauge.enter, Phase.WAITING, Cause.THROTTLED)
        left = functools.partial(_left_bytes, obj, partial)
        refused_at_bytes = -1

        def received(n_bytes: int) -> None:
            share.received(n_bytes, is_held=gauge.is_held)

        with means.hosts.share(urls[-1], left, is_urgent=demand.is_awaited) as share:
            while obj.size_bytes is None or partial.missing():
                if wishes.is_whole:
                    partial.forget()
                gauge.enter(Phase.WAITING, reason="what was asked for so far is here")
                first = await wishes.first()
                await unbraked(means.brakes, hold, *urls)
                landed = len(partial.landed)
                try:
                    async with (
                        _seated(share, gauge),
                        means.general.lend(GENERAL_BLOCK_BYTES) as buffer,
                    ):
                        gauge.enter(Phase.DOWNLOADING)
                        reply = Reply(obj, partial, buffer, self._make_room, pace, received)
                        stopped_at = await reply.read(means.source, gauge, first, wishes)
                    if obj.size_bytes is None:
                        return stopped_at
                except DamagedError as error:
                    damages.note(error, partial.header)
                except NoRangesError:
                    wishes.is_whole = True
                except REFUSALS as error:
                    if partial.landed_bytes == refused_at_bytes:
                        raise
                    refused_at_bytes = partial.landed_bytes
                    logger.info("%s is asked for once more: %s", obj.title, error)
                except TransientError as error:
                    if not wishes.is_whole and len(partial.landed) > landed:
                        patience.succeeded()
                    gauge.retry(error)
                    await patience.wait(error)
            return obj.size_bytes


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


def _left_bytes(obj: Object, partial: Partial) -> int:
    return (obj.size_bytes or 0) - partial.landed_bytes


def _has_bytes(obj: Object, partial: Partial) -> bool:
    """Whether some bytes are here that need not come again."""
    return obj.is_rangeable and bool(partial.landed)
