"""Fills a partial from its origin: parallel streams where that is sound, else one reply."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable

from ckptd_daemon.fetch.demand import Demand, Wishes
from ckptd_daemon.fetch.means import GENERAL_BLOCK_BYTES, Means
from ckptd_daemon.fetch.progress import Cause, Gauge, Phase
from ckptd_daemon.fetch.reply import Reply
from ckptd_daemon.fetch.retry import Damages, Patience, unbraked
from ckptd_daemon.fetch.streams import Streams
from ckptd_daemon.sources.brakes import host_of
from ckptd_daemon.sources.source import NoRangesError, Object, TransientError
from ckptd_daemon.store.partials import DamagedError, Partial


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
        patience = Patience(obj.title, means.config.retries)
        damages = Damages(obj.title)
        wishes = Wishes(demand, partial, is_whole=not obj.is_rangeable)
        pace = means.pacer.pace([obj.url], gauge.held)
        urls = [obj.url] if obj.direct is None else [obj.url, obj.direct.url]
        hold = functools.partial(gauge.enter, Phase.WAITING, Cause.THROTTLED)
        while obj.size_bytes is None or partial.missing():
            if wishes.is_whole:
                partial.forget()
            gauge.enter(Phase.WAITING, reason="what was asked for so far is here")
            first = await wishes.first()
            await unbraked(means.brakes, hold, *urls)
            gauge.enter(Phase.DOWNLOADING)
            landed = len(partial.landed)
            try:
                async with means.general.lend(GENERAL_BLOCK_BYTES) as buffer:
                    reply = Reply(obj, partial, buffer, self._make_room, pace)
                    stopped_at = await reply.read(means.source, gauge, first, wishes)
                if obj.size_bytes is None:
                    return stopped_at
            except DamagedError as error:
                damages.note(error, partial.header)
            except NoRangesError:
                wishes.is_whole = True
            except TransientError as error:
                if not wishes.is_whole and len(partial.landed) > landed:
                    patience.succeeded()
                gauge.retry(error)
                await patience.wait(error)
        return obj.size_bytes
