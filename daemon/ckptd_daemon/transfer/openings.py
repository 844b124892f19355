"""Questions that bring more than the answer: the version of an object, and then its bytes.

For one of many files, which are mostly small, one request does for both. Who asks like that holds
a seat at the host and a connection, both of which the flight of the version takes over.
"""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from dataclasses import dataclass

import anyio
from multidict import CIMultiDict

from ckptd_daemon.sources.brakes import host_of
from ckptd_daemon.sources.http import HttpSource, described
from ckptd_daemon.sources.source import ChangedError, Object, TransientError
from ckptd_daemon.store.blob import key_of
from ckptd_daemon.store.buffers import BLOCK_BYTES
from ckptd_daemon.transfer.progress import Gauge
from ckptd_daemon.transfer.retry import Patience
from ckptd_daemon.transfer.stream import NotFastError, RefusedError, StaleError
from ckptd_daemon.transfer.visits import Visit, Visits

logger = logging.getLogger(__name__)

SMALL_BYTES = BLOCK_BYTES
"""What one request is to bring at most, and one block of memory holds."""
KEPT_S = 1.0  # for so long nobody may have come for the bytes


@dataclass(frozen=True, slots=True)
class _Opening:
    visit: Visit
    since: float


class Openings:
    """Visits whose reply has begun; of the event loop."""

    def __init__(self, visits: Visits, source: HttpSource) -> None:
        self._visits = visits
        self._source = source
        self._kept: OrderedDict[str, _Opening] = OrderedDict()  # the oldest first
        self._more = anyio.Event()

    def __repr__(self) -> str:
        return f"<Openings [{len(self._kept)} kept]>"

    async def ask(self, url: str, only_public: bool, gauge: Gauge) -> Object | None:
        """Return what *url* names, and keep the reply for who `take`s it.

        None if it has to be asked in the usual way, because that is better or something went wrong.
        """
        for door in await self._source.doors(url, only_public=only_public):
            try:
                return await self._asked(door, gauge)
            except ChangedError:  # it is no public address
                continue
            except TransientError as error:
                gauge.retry(error)
                means = self._visits.means
                is_giving = functools.partial(means.hosts.is_giving, url)
                await Patience(door.title, means.config.retries, is_giving).wait(error)
                return None
            except (NotFastError, RefusedError, StaleError) as error:
                logger.debug("%s is asked in the usual way: %s", door.title, error)
                return None
        return None

    async def _asked(self, door: Object, gauge: Gauge) -> Object | None:
        endpoint, means = door.direct, self._visits.means
        assert endpoint is not None, "a door is where one can ask"
        if not means.abilities.may_be_fast(host_of(endpoint.url), door.id):
            return None
        if means.brakes.left_s(endpoint.url) > 0:
            return None
        visit = self._visits.begin(door, endpoint, gauge, lambda: True)
        try:
            await visit.connect()
            if means.brakes.left_s(endpoint.url) > 0:  # since it waits for its seat
                visit.close()
                return None
            asked = await self._visits.work(visit, lambda: visit.stream.begin(SMALL_BYTES))
            size_bytes, headers = asked
            obj = described(door, size_bytes, CIMultiDict(headers.items()), is_whole=False)
        except BaseException as error:
            if isinstance(error, TransientError):
                visit.failed(error)
            visit.close()
            raise
        means.brakes.hold(endpoint.url, visit.stream.pause_s)
        if size_bytes > SMALL_BYTES:
            visit.close()
        else:
            visit.stream.go_on(obj)
            self._keep(key_of(obj.id, obj.version), visit)
        return obj

    def _keep(self, key: str, visit: Visit) -> None:
        if (other := self.take(key)) is not None:
            other.close()
        self._kept[key] = _Opening(visit, anyio.current_time())
        self._more.set()

    def take(self, key: str) -> Visit | None:
        """Return the visit that is about to bring *key*; whoever has it closes it."""
        kept = self._kept.pop(key, None)
        return None if kept is None else kept.visit

    async def keep(self) -> None:
        """End those that nobody comes for; runs for ever, and ends all at its end."""
        try:
            while True:
                await self._more.wait()
                self._more = anyio.Event()
                while self._kept:
                    oldest = next(iter(self._kept.values()))
                    await anyio.sleep(max(0.0, oldest.since + KEPT_S - anyio.current_time()))
                    self._close(before=anyio.current_time() - KEPT_S)
        finally:
            self._close(before=float("inf"))

    def _close(self, before: float) -> None:
        while self._kept and next(iter(self._kept.values())).since <= before:
            self._kept.popitem(last=False)[1].visit.close()
