from __future__ import annotations

import logging

import anyio
import anyio.lowlevel
import pytest

from ckptd_daemon.sessions import Sessions
from ckptd_daemon.stopping import Half, Stopping, ask_when_idle, drain


class Work(Half):
    """A half with one piece of work."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.refuses = False

    @property
    def is_idle(self) -> bool:
        return self.done.is_set()

    def refuse_new(self) -> None:
        self.refuses = True

    async def wait_idle(self) -> None:
        await self.done.wait()

    def unfinished(self) -> list[str]:
        return [] if self.is_idle else ["half a blob of 3 GB"]


async def test_draining_refuses_new_work_and_waits_for_the_old() -> None:
    work = Work()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drain, [work], 60.0)
        await anyio.wait_all_tasks_blocked()
        assert work.refuses
        work.done.set()


async def test_what_does_not_fit_is_left_and_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        await drain([Work()], 0.01)
    assert [record.getMessage() for record in caplog.records] == [
        "left for the next start: half a blob of 3 GB"
    ]


async def test_a_daemon_with_work_does_not_end_from_idleness() -> None:
    work, stopping = Work(), Stopping()
    async with Sessions.open() as sessions, anyio.create_task_group() as tasks:
        tasks.start_soon(ask_when_idle, stopping, 0.01, sessions, [work])
        with anyio.move_on_after(0.1):  # ten times what idleness would take
            await stopping.wait_asked()
        assert not stopping.is_asked
        work.done.set()
        await stopping.wait_asked()
