"""Who has a turn, and who is next."""

from __future__ import annotations

import anyio
import anyio.lowlevel

from ckptd_daemon.save.turns import Turns


class Line:
    """Some who wait for a turn at one thing, which the first has."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self.turns = Turns[str]()
        self.had: list[int] = []
        self.done = anyio.Event()
        self._tasks = tasks

    async def stand(self, *numbers: int) -> list[anyio.CancelScope]:
        scopes = [anyio.CancelScope() for _ in numbers]
        for number, scope in zip(numbers, scopes, strict=True):
            self._tasks.start_soon(self._take, number, scope)
            await anyio.wait_all_tasks_blocked()
        return scopes

    async def _take(self, number: int, scope: anyio.CancelScope) -> None:
        with scope:
            async with self.turns.take("here", number):
                self.had.append(number)
                if len(self.had) == 1:
                    await self.done.wait()


async def test_turns_come_in_the_order_in_which_they_were_asked_for() -> None:
    async with anyio.create_task_group() as tasks:
        line = Line(tasks)
        await line.stand(5, 9, 2)
        line.done.set()
    assert line.had == [5, 9, 2]
    assert len(line.turns) == 0


async def test_the_newest_comes_first_if_it_shall() -> None:
    async with anyio.create_task_group() as tasks:
        line = Line(tasks)
        await line.stand(5, 2, 9, 4)
        line.turns.newest_first = True
        line.done.set()
    assert line.had == [5, 9, 4, 2]


async def test_who_leaves_the_line_keeps_nobody_waiting() -> None:
    async with anyio.create_task_group() as tasks:
        line = Line(tasks)
        first, second, _ = await line.stand(1, 2, 3)
        second.cancel()
        await anyio.wait_all_tasks_blocked()
        first.cancel()
    assert line.had == [1, 3]
    assert len(line.turns) == 0


async def test_things_do_not_wait_for_each_other() -> None:
    turns = Turns[str]()
    async with turns.take("here"), turns.take("there"):
        assert len(turns) == 2
