"""A root that hangs keeps its own threads, and no others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from ckptd_daemon.save import threads
from fakes.waiting import until

HANGING, WELL = Path("/hanging"), Path("/well")


class Hang:
    """What a dead mount does to whoever asks it."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.met = self.left = 0

    def look(self) -> str:
        self.met += 1
        assert self.over.wait(30)
        self.left += 1
        return "well again"


@pytest.fixture
def hang() -> Iterator[Hang]:
    one = Hang()
    yield one
    one.over.set()


async def test_those_who_ask_a_root_that_hangs_keep_nobody_else_waiting(hang: Hang) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(threads.run, HANGING, hang.look)
        await until(lambda: hang.met == threads.EACH)
        assert await threads.run(WELL, lambda: "fine") == "fine"
        assert await to_thread.run_sync(lambda: "fine") == "fine"
        assert hang.met == threads.EACH
        hang.over.set()
    assert hang.left == 50


async def test_a_thread_that_was_left_counts_until_it_is_done(hang: Hang) -> None:
    async def look() -> None:
        await threads.run(HANGING, hang.look, may_leave=True)

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(look)
        await until(lambda: hang.met == threads.EACH)
        tasks.cancel_scope.cancel()
    with anyio.move_on_after(0.1):
        await look()  # another thread would be lost to the same root
    assert hang.met == threads.EACH
    hang.over.set()
    assert await threads.run(HANGING, hang.look) == "well again"


async def test_who_may_not_leave_waits_for_its_thread(hang: Hang) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(threads.run, HANGING, hang.look)
        await until(lambda: hang.met)
        tasks.cancel_scope.cancel()
        threading.Timer(0.05, hang.over.set).start()
    assert hang.left == 1
