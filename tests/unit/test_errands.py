"""One piece of work at a time in each run, and it goes on when its caller has left."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from ckptd_daemon.save.errands import Errands
from ckptd_daemon.save.places import Place
from ckptd_proto import errors

HANGING, WELL = Place(Path("/root"), "e", "hanging"), Place(Path("/root"), "e", "well")


class Work:
    """It begins, and ends when it is told to."""

    def __init__(self) -> None:
        self.begun, self.may_end = anyio.Event(), anyio.Event()
        self.is_done = False

    async def __call__(self) -> str:
        self.begun.set()
        await self.may_end.wait()
        self.is_done = True
        return "done"


async def test_a_run_that_hangs_keeps_only_those_waiting_who_want_it() -> None:
    first, second, other = Work(), Work(), Work()
    async with anyio.create_task_group() as tasks:
        errands = Errands(tasks)
        await errands.begin(HANGING, "being opened", first)
        tasks.start_soon(errands.run, HANGING, "being opened", second)
        other.may_end.set()
        assert await errands.run(WELL, "being opened", other) == "done"
        await first.begun.wait()
        assert not second.begun.is_set()
        first.may_end.set()
        await second.begun.wait()
        assert first.is_done
        second.may_end.set()


async def test_what_has_begun_goes_on_without_its_caller_and_nothing_else_meanwhile() -> None:
    first, second = Work(), Work()
    async with anyio.create_task_group() as tasks:
        errands = Errands(tasks)
        said = pytest.raises(errors.DeadlineExceeded, match=r"e/hanging .* it is being opened")
        with said, errands.answering(HANGING, 0.05):
            await errands.run(HANGING, "being opened", first)
        with anyio.move_on_after(0.05):
            await errands.run(HANGING, "being opened", second)
        first.may_end.set()
        third = Work()
        third.may_end.set()
        assert await errands.run(HANGING, "being opened", third) == "done"
        assert first.is_done
        assert not second.begun.is_set()  # who left before its turn wants it no more


async def test_a_failure_is_raised_by_who_waits_and_the_next_has_its_turn() -> None:
    async def fails() -> None:
        raise errors.Unavailable("no")

    async with anyio.create_task_group() as tasks:
        errands = Errands(tasks)
        with pytest.raises(errors.Unavailable, match="no"):
            await errands.run(HANGING, "being opened", fails)
        work = Work()
        work.may_end.set()
        assert await errands.run(HANGING, "being opened", work) == "done"
