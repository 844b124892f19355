"""At most one run of a piece of work per key; everyone who asks shares its outcome."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from math import inf
from typing import Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

from ckptd_daemon.fetch.failures import Failures
from ckptd_daemon.transfer.demand import Demand
from ckptd_daemon.transfer.progress import Gauge
from ckptd_proto import errors

V = TypeVar("V")


class Flight(Generic[V]):
    """One run in progress and the callers waiting for it."""

    def __init__(self, key: str, asker: str) -> None:
        self.key = key
        self.asker = asker
        """By whose right it flies: that of the first passenger."""
        self.gauge = Gauge()
        self.demand = Demand()
        self.passengers = 0
        self.scope = anyio.CancelScope()
        self.landed = anyio.Event()
        self.values: list[V] = []  # one element once the work returned
        self.error: Exception | None = None

    @property
    def waiters(self) -> int:
        """How many passengers somebody waits for."""
        return self.passengers - self.demand.detached

    async def outcome(self) -> V:
        """Wait for the run and return its value, or raise its error."""
        await self.landed.wait()
        if self.error is not None:
            raise self.error.with_traceback(None)
        if not self.values:
            text = "the daemon is stopping; what was fetched is kept, ask again once it is back"
            raise errors.Unavailable(text)
        return self.values[0]


class Flights(Generic[V]):
    """The runs now in progress, by key."""

    def __init__(self, tasks: TaskGroup, *, linger_s: float, failure_s: float = 0) -> None:
        self._tasks = tasks  # outlives every caller, so no caller owns the work
        self._linger_s = linger_s
        self._flights: dict[str, Flight[V]] = {}
        self._failures = Failures(failure_s)
        self._quiet = anyio.Event()  # set by the last flight to land

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, key: object) -> bool:
        return key in self._flights

    def __iter__(self) -> Iterator[Flight[V]]:
        return iter(list(self._flights.values()))

    def __repr__(self) -> str:
        waiting = sum(flight.passengers for flight in self)
        lingering = sum(flight.passengers == 0 for flight in self)
        return f"<Flights [{len(self)} in the air, {waiting} waiting | {lingering} lingering]>"

    @asynccontextmanager
    async def board(
        self, key: str, work: Callable[[Flight[V]], Awaitable[V]], *, asker: str = ""
    ) -> AsyncIterator[Flight[V]]:
        """Be a passenger of the run for *key* inside the block; starts it if nobody flies.

        *asker* tells credentials apart: a run that has just failed for it is not repeated, its
        error is raised again.

        A caller that leaves disturbs nobody. When the last one has left, the work goes on for the
        linger time and is then cancelled; whoever asks later waits for it to wind down and starts
        afresh. Two runs for one key never overlap.
        """
        while (flight := self._flights.get(key)) is not None and flight.scope.cancel_called:
            await flight.landed.wait()
        if flight is None:
            self._failures.check(key, asker)
            flight = self._flights[key] = Flight(key, asker)
            self._tasks.start_soon(self._fly, flight, work)
        flight.passengers += 1
        flight.scope.deadline = inf
        try:
            yield flight
        finally:
            flight.passengers -= 1
            if flight.passengers == 0:
                flight.scope.deadline = anyio.current_time() + self._linger_s

    async def wait_idle(self) -> None:
        """Return when nothing flies."""
        while self._flights:
            self._quiet = anyio.Event()
            await self._quiet.wait()

    async def _fly(self, flight: Flight[V], work: Callable[[Flight[V]], Awaitable[V]]) -> None:
        try:
            with flight.scope:
                flight.values.append(await work(flight))
        except Exception as error:  # noqa: BLE001  re-raised to every passenger
            if isinstance(error, errors.CkptdError):
                self._failures.note(flight.key, flight.asker, flight.gauge.title, error)
            flight.error = error
        finally:
            del self._flights[flight.key]
            flight.landed.set()
            if not self._flights:
                self._quiet.set()
