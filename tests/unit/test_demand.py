"""What callers of a flight want, and what they are told."""

from __future__ import annotations

from pathlib import Path

import anyio

from ckptd_daemon.store.journal import Header
from ckptd_daemon.store.partials import Partial
from ckptd_daemon.transfer.demand import Demand

HEADER = Header("o", "t", "v", "n", size_bytes=100, chunk_bytes=10, is_resumable=True)


def test_what_was_wanted_first_comes_first_and_what_landed_is_wanted_no_more() -> None:
    demand, partial = Demand(), Partial(Path("unused"), HEADER)
    demand.want([7, 3], "one")
    demand.open(partial)
    demand.want([5, 7], "one")
    assert list(demand.urgent()) == [7, 3, 5]
    partial.landed[3] = 0
    demand.landed(3)
    demand.want([3, 9], "one")
    assert list(demand.urgent()) == [7, 5, 9]


def test_what_was_here_before_is_not_wanted() -> None:
    demand, partial = Demand(), Partial(Path("unused"), HEADER)
    demand.want([7, 3], "one")
    partial.landed[7] = 0
    demand.open(partial)
    assert list(demand.urgent()) == [3]


def test_what_was_wanted_by_who_left_is_wanted_no_more_unless_by_another() -> None:
    demand = Demand()
    demand.want([7, 3], "one")
    demand.want([3, 5], "other")
    demand.unwant("one")
    assert list(demand.urgent()) == [3, 5]
    demand.unwant("other")
    assert list(demand.urgent()) == []


def test_a_hash_that_some_caller_does_not_state_is_not_everybodys() -> None:
    demand = Demand()
    with demand.awaited(bool, "aa"):
        assert demand.is_stated_by_all("aa")
        with demand.awaited(bool):
            assert not demand.is_stated_by_all("aa")
        assert demand.is_stated_by_all("aa")
        assert not demand.is_stated_by_all("bb")


def test_the_whole_is_wanted_while_somebody_wants_it() -> None:
    demand = Demand()
    with demand.whole():
        with demand.whole():
            assert demand.is_whole
        assert demand.is_whole
    assert not demand.is_whole


async def test_whoever_waits_is_told_of_every_move() -> None:
    demand, moves = Demand(), []

    async def follow() -> None:
        for _ in range(3):
            await demand.moved()
            moves.append(len(moves))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        for move in (
            lambda: demand.want([1], "one"),
            lambda: demand.landed(1),
            lambda: demand.landed(2),
        ):
            await anyio.wait_all_tasks_blocked()
            move()
    assert moves == [0, 1, 2]
