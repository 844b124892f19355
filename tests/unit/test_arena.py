"""What the arena does of itself with memory that nobody holds."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from ckptd_daemon.config import Config
from ckptd_daemon.save.arena import budget, headers, slots
from ckptd_daemon.save.arena.allotment import Allotment
from ckptd_daemon.save.arena.arena import Arena
from ckptd_daemon.save.arena.slots import SlotFile
from ckptd_daemon.save.arena.uses import Content, Holder, Slot, Use
from ckptd_daemon.save.places import Place
from fakes.waiting import until

MIB = 1 << 20
LIMIT_BYTES = 1 << 40  # more than any machine has, so the node itself is never the tightest


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only control group there is."""
    directory = tmp_path / "cgroup"
    directory.mkdir()
    membership = tmp_path / "membership"
    membership.write_text("0::/\n")
    monkeypatch.setattr(budget, "_CGROUPS", directory)
    monkeypatch.setattr(budget, "_MEMBERSHIP", membership)
    (directory / "memory.max").write_text(f"{LIMIT_BYTES}\n")
    (directory / "memory.stat").write_text("inactive_file 0\n")
    use(directory, share=0.5)
    return directory


def use(group: Path, share: float) -> None:
    """Have processes of the group use so much of its memory."""
    (group / "memory.current").write_text(f"{int(LIMIT_BYTES * share)}\n")


def holder(tmp_path: Path, rank: int) -> Holder:
    return Holder.of(rank, Place(tmp_path, "e", "r"), 0)


def slots_left(tmp_path: Path) -> list[Path]:
    return list(tmp_path.glob("ckptd-*"))


async def committed(arena: Arena, holder: Holder) -> Slot:
    """Return a slot in which something committed lies."""
    slot = await Allotment(arena, 2).reserve(holder, MIB, purpose="a test", timeout_s=30)
    laid, _ = headers.layout(())
    arena.release(slot, Content("attempt", 0, laid))
    return slot


async def test_what_is_left_goes_when_memory_is_scarce_and_what_is_held_stays(
    tmp_path: Path, group: Path
) -> None:
    config = Config(state_dir=tmp_path / "state", arena_dir=tmp_path, arena_bytes=8 * MIB)
    async with Arena.open(config) as (arena, _):
        gone, living = holder(tmp_path, 0), holder(tmp_path, 1)
        await committed(arena, gone)
        arena.forget(gone)
        await committed(arena, living)
        assert len(arena.holding("attempt")) == 2
        use(group, share=0.91)
        with anyio.fail_after(30):
            while arena.statistics().slots > 1:
                await arena.changed.wait()
        assert [slot.holder for slot in arena.holding("attempt")] == [living]


@pytest.mark.parametrize(("share", "is_scarce"), [(0.89, False), (0.91, True)])
def test_memory_is_scarce_when_a_tenth_is_left(group: Path, share: float, is_scarce: bool) -> None:
    use(group, share)
    assert budget.is_scarce() == is_scarce


async def test_a_slot_that_comes_while_the_arena_closes_goes_and_no_other_goes_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(state_dir=tmp_path / "state", arena_dir=tmp_path, arena_bytes=8 * MIB)
    began, may_come = threading.Event(), threading.Event()
    create = slots.create

    def slow(*args: Any, **kwargs: Any) -> SlotFile:
        began.set()
        assert may_come.wait(30)
        return create(*args, **kwargs)

    async with anyio.create_task_group() as tasks, Arena.open(config) as (arena, _):
        await committed(arena, holder(tmp_path, 0))
        monkeypatch.setattr(slots, "create", slow)
        coming = arena.create(holder(tmp_path, 1), MIB)
        assert await anyio.to_thread.run_sync(began.wait, 30)
        tasks.start_soon(_let_come_once_gone, arena, coming, may_come)
    assert not slots_left(tmp_path)


async def _let_come_once_gone(arena: Arena, coming: Slot, may_come: threading.Event) -> None:
    await until(lambda: all(slot is coming or slot.use is Use.GOING for slot in arena))
    may_come.set()
