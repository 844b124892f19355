"""One run per key, whoever comes, whoever leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.lowlevel import checkpoint

from ckptd_daemon.fetch.flights import Flight, Flights
from ckptd_proto import errors


class Work:
    """A piece of work that waits until it is told to end."""

    def __init__(self, error: Exception | None = None) -> None:
        self.runs = 0
        self.cancelled = 0
        self.end = anyio.Event()
        self._error = error

    async def __call__(self, flight: Flight[int]) -> int:
        self.runs += 1
        try:
            await self.end.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        if self._error is not None:
            raise self._error
        return self.runs


@asynccontextmanager
async def flying(linger_s: float) -> AsyncIterator[Flights[int]]:
    async with anyio.create_task_group() as tasks:
        yield Flights(tasks, linger_s=linger_s)
        tasks.cancel_scope.cancel()


async def ride(flights: Flights[int], work: Work, outcomes: list[object]) -> None:
    try:
        async with flights.board("k", work) as flight:
            outcomes.append(await flight.outcome())
    except errors.CkptdError as error:
        outcomes.append(error)


async def test_a_hundred_callers_share_one_run() -> None:
    work, outcomes = Work(), list[object]()
    async with flying(10) as flights, anyio.create_task_group() as callers:
        for _ in range(100):
            callers.start_soon(ride, flights, work, outcomes)
        await anyio.wait_all_tasks_blocked()
        assert len(flights) == 1
        work.end.set()
    assert outcomes == [1] * 100


async def test_a_failure_reaches_all_and_is_not_remembered() -> None:
    failing, outcomes = Work(errors.NotFound("gone")), list[object]()
    async with flying(10) as flights:
        async with anyio.create_task_group() as callers:
            for _ in range(3):
                callers.start_soon(ride, flights, failing, outcomes)
            await anyio.wait_all_tasks_blocked()
            failing.end.set()
        assert [type(outcome) for outcome in outcomes] == [errors.NotFound] * 3
        good = Work()
        good.end.set()
        await ride(flights, good, outcomes)
    assert outcomes[-1] == 1


async def test_a_caller_that_leaves_disturbs_nobody() -> None:
    work, outcomes = Work(), list[object]()
    async with flying(0) as flights, anyio.create_task_group() as callers:
        leaving = anyio.CancelScope()

        async def leave() -> None:
            with leaving:
                await ride(flights, work, [])

        callers.start_soon(leave)
        callers.start_soon(ride, flights, work, outcomes)
        await anyio.wait_all_tasks_blocked()
        leaving.cancel()
        await anyio.wait_all_tasks_blocked()
        work.end.set()
    assert (outcomes, work.cancelled) == ([1], 0)


async def test_when_the_last_has_left_the_run_is_cancelled() -> None:
    work = Work()
    async with flying(0) as flights:
        with anyio.CancelScope() as leaving:
            async with flights.board("k", work) as flight:
                await anyio.wait_all_tasks_blocked()
                leaving.cancel()
                await flight.outcome()
        await flights.wait_idle()
    assert work.cancelled == 1


async def test_whoever_comes_back_while_it_lingers_finds_it_flying() -> None:
    work, outcomes = Work(), list[object]()
    async with flying(3600) as flights:
        with anyio.CancelScope() as leaving:
            async with flights.board("k", work):
                await anyio.wait_all_tasks_blocked()
                leaving.cancel()
                await checkpoint()
        work.end.set()
        await ride(flights, work, outcomes)
    assert (work.runs, outcomes) == (1, [1])


async def test_a_daemon_that_stops_tells_its_waiters() -> None:
    outcomes: list[object] = []
    async with anyio.create_task_group() as callers, flying(10) as flights:
        callers.start_soon(ride, flights, Work(), outcomes)
        await anyio.wait_all_tasks_blocked()
    with pytest.raises(errors.Unavailable, match="stopping"):
        raise outcomes[0]
