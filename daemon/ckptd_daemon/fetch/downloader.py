"""Fills a partial from its origin: parallel streams where that is sound, else one reply."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ckptd_daemon.config import Config
from ckptd_daemon.fetch.demand import Demand, Wishes
from ckptd_daemon.fetch.pace import Pacer
from ckptd_daemon.fetch.progress import Gauge, Phase
from ckptd_daemon.fetch.reply import Reply
from ckptd_daemon.fetch.retry import Damages, Patience
from ckptd_daemon.fetch.streams import Streams, Threads
from ckptd_daemon.sources.source import NoRangesError, Object, Source, TransientError
from ckptd_daemon.store.buffers import Buffers
from ckptd_daemon.store.partials import DamagedError, Partial


class Downloader:
    """The byte paths of the daemon, under one budget of memory and threads."""

    def __init__(
        self,
        config: Config,
        source: Source,
        buffers: Buffers,
        make_room: Callable[[str, int], Awaitable[None]],
        pacer: Pacer,
    ) -> None:
        self._config = config
        self._source = source
        self._buffers = buffers
        self._make_room = make_room
        self._pacer = pacer
        self._threads = Threads()

    async def fill(self, obj: Object, partial: Partial, gauge: Gauge, demand: Demand) -> int:
        """Bring what *partial* lacks as *demand* has it; returns the object's size at the end.

        Raises `ChangedError` or one of our typed errors. What has landed stays in any case.
        """
        gauge.enter(Phase.DOWNLOADING)
        gauge.total_bytes = obj.size_bytes
        if obj.is_rangeable and obj.direct is not None:
            streams = Streams(self._config, obj, obj.direct, partial, gauge, demand, self._pacer)
            await streams.fill(self._buffers, self._threads)
        return await self._fill_general(obj, partial, gauge, demand)

    async def _fill_general(
        self, obj: Object, partial: Partial, gauge: Gauge, demand: Demand
    ) -> int:
        """Bring what is still missing, one reply at a time."""
        patience = Patience(obj.title, self._config.retries)
        damages = Damages(obj.title)
        wishes = Wishes(demand, partial, is_whole=not obj.is_rangeable)
        pace = self._pacer.pace([obj.url], gauge.held)
        while obj.size_bytes is None or partial.missing():
            if wishes.is_whole:
                partial.forget()
            gauge.enter(Phase.WAITING, reason="what was asked for so far is here")
            first = await wishes.first()
            gauge.enter(Phase.DOWNLOADING)
            landed = len(partial.landed)
            try:
                async with self._buffers.lend() as buffer:
                    reply = Reply(obj, partial, buffer, self._make_room, pace)
                    stopped_at = await reply.read(self._source, gauge, first, wishes)
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
