"""What an origin says now: asked once by whoever comes first, and believed for a while."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Generic, Protocol, TypeVar

import anyio
from anyio.abc import TaskGroup

from ckptd_daemon.config import Config
from ckptd_daemon.fetch.flights import Flight, Flights
from ckptd_daemon.sources.brakes import Brakes
from ckptd_daemon.transfer.hosts import Hosts
from ckptd_daemon.transfer.progress import Gauge
from ckptd_daemon.transfer.retry import patiently
from ckptd_proto.urls import display

REMEMBERED_MAX = 16_384

V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)


class Ask(Protocol[V_co]):
    """A question to an origin about a URL."""

    def __call__(self, url: str, *, only_public: bool) -> Awaitable[V_co]:
        """Return the answer; raises `TransientError` or one of our typed errors."""


First = Callable[[str, bool, Gauge], Awaitable[V | None]]
"""Asks about a URL, only as the public sees it or not, in a better way; None if that fails."""


class Answers(Generic[V]):
    """Answers to one kind of question, each remembered for `revalidate_s`."""

    def __init__(
        self, ask: Ask[V], brakes: Brakes, hosts: Hosts, tasks: TaskGroup, config: Config
    ) -> None:
        self._put = ask
        self._brakes = brakes
        self._hosts = hosts
        self._revalidate_s = config.revalidate_s
        self._retries = config.retries
        self._flights: Flights[V] = Flights(tasks, linger_s=0, failure_s=config.failure_s)
        self._known: dict[str, tuple[float, V]] = {}  # by hashed URL, oldest first

    def __iter__(self) -> Iterator[Flight[V]]:
        """Iterate over the questions that are being asked."""
        return iter(self._flights)

    async def of(
        self,
        url: str,
        *,
        only_public: bool,
        on_board: Callable[[Gauge], object],
        first: First[V] | None = None,
    ) -> V:
        """Return what is true of *url* now, or was at most `revalidate_s` ago.

        If the origin is asked, by *first* at first, *on_board* gets to know how that goes.
        """
        known = self.known(url, only_public=only_public)
        if known is not None:
            return known
        key = _key(url, only_public)
        ask = partial(self._ask, key, url, only_public, first)
        async with self._flights.board(key, ask) as flight:
            on_board(flight.gauge)
            return await flight.outcome()

    def known(self, url: str, *, only_public: bool) -> V | None:
        """Return what is believed of *url* without asking."""
        known = self._known.get(_key(url, only_public))
        if known is None or anyio.current_time() - known[0] >= self._revalidate_s:
            return None
        return known[1]

    def forget(self, url: str, *, only_public: bool) -> None:
        """Ask again next time."""
        self._known.pop(_key(url, only_public), None)

    async def _ask(
        self, key: str, url: str, only_public: bool, first: First[V] | None, flight: Flight[V]
    ) -> V:
        asked_at = anyio.current_time()
        flight.gauge.title = display(url)
        answer = None if first is None else await first(url, only_public, flight.gauge)
        if answer is None:
            ask = partial(self._put, url, only_public=only_public)
            answer = await patiently(
                ask, url, display(url), self._retries, flight.gauge, self._brakes, self._hosts
            )
        self._known.pop(key, None)
        self._known[key] = asked_at, answer
        while len(self._known) > REMEMBERED_MAX:
            del self._known[next(iter(self._known))]
        return answer


def _key(url: str, only_public: bool) -> str:
    """Tell URLs apart, credentials included, without keeping these readable."""
    return hashlib.sha256(f"{only_public} {url}".encode()).hexdigest()
