"""Fills a partial from its origin: parallel streams where that is sound, else one reply."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ckptd_daemon.sources.brakes import host_of
from ckptd_daemon.sources.source import Object
from ckptd_daemon.store.partials import Partial
from ckptd_daemon.transfer.demand import Demand
from ckptd_daemon.transfer.general import General
from ckptd_daemon.transfer.means import Means
from ckptd_daemon.transfer.progress import Gauge, Phase
from ckptd_daemon.transfer.streams import Streams


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
        return await General(self._means, self._make_room, obj, partial, gauge, demand).fill()
