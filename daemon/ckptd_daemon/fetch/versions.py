"""What an object is now: asked once by whoever comes first, and believed for a while."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial

import anyio
from anyio.abc import TaskGroup

from ckptd_daemon.fetch.flights import Flight, Flights
from ckptd_daemon.fetch.progress import Gauge
from ckptd_daemon.fetch.retry import patiently
from ckptd_daemon.sources.source import Object, Source
from ckptd_proto.urls import display

REMEMBERED_MAX = 4096


class Versions:
    """Answers about objects, each remembered for `revalidate_s`."""

    def __init__(
        self,
        source: Source,
        tasks: TaskGroup,
        *,
        revalidate_s: float,
        retries: int,
        failure_s: float,
    ) -> None:
        self._source = source
        self._revalidate_s = revalidate_s
        self._retries = retries
        self._flights: Flights[Object] = Flights(tasks, linger_s=0, failure_s=failure_s)
        self._known: dict[str, tuple[float, Object]] = {}  # by hashed URL, oldest first

    def __iter__(self) -> Iterator[Flight[Object]]:
        """Iterate over the questions that are being asked."""
        return iter(self._flights)

    async def of(
        self, url: str, *, only_public: bool, on_board: Callable[[Gauge], object]
    ) -> Object:
        """Return what *url* names now, or named at most `revalidate_s` ago.

        If the origin is asked, *on_board* gets to know how that goes.
        """
        key = _key(url, only_public)
        asked_at, obj = self._known.get(key, (0.0, None))
        if obj is not None and anyio.current_time() - asked_at < self._revalidate_s:
            return obj
        async with self._flights.board(key, partial(self._ask, key, url, only_public)) as flight:
            on_board(flight.gauge)
            return await flight.outcome()

    def forget(self, url: str, *, only_public: bool) -> None:
        """Ask again next time."""
        self._known.pop(_key(url, only_public), None)

    async def _ask(self, key: str, url: str, only_public: bool, flight: Flight[Object]) -> Object:
        asked_at = anyio.current_time()
        flight.gauge.title = display(url)
        stat = partial(self._source.stat, url, only_public=only_public)
        obj = await patiently(stat, display(url), self._retries, flight.gauge)
        self._known.pop(key, None)
        self._known[key] = asked_at, obj
        while len(self._known) > REMEMBERED_MAX:
            del self._known[next(iter(self._known))]
        return obj


def _key(url: str, only_public: bool) -> str:
    """Tell URLs apart, credentials included, without keeping these readable."""
    return hashlib.sha256(f"{only_public} {url}".encode()).hexdigest()
