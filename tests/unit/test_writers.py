"""Writers let the training go first, unless the machine is about to go away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from ckptd_daemon.config import Config
from ckptd_daemon.save.images import writers
from ckptd_daemon.save.images.writers import Writers
from fakes.waiting import is_somebody_in, until

BLOCKS = 20


class Spent:
    """An allowance that is used up after the first block."""

    asked = 0
    made = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        Spent.made += 1

    def pause_s(self, used_s: float) -> float:
        Spent.asked += 1
        return 0.0 if Spent.asked == 1 else 3600.0


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Writers]:
    monkeypatch.setattr(writers, "Allowance", Spent)
    monkeypatch.setattr(Spent, "asked", 0)
    monkeypatch.setattr(Spent, "made", 0)
    yield Writers(Config(socket=tmp_path / "s", state_dir=tmp_path, persist_threads=1))


async def test_when_time_is_short_nothing_is_left_to_the_training(
    one: Writers, tmp_path: Path
) -> None:
    done: list[int] = []
    one.hurry(is_hurried=True)
    await one.write(tmp_path, (lambda n=number: done.append(n) for number in range(BLOCKS)))
    assert sorted(done) == list(range(BLOCKS))
    assert Spent.asked == 0


async def test_what_is_being_written_when_time_gets_short_hurries_too(
    one: Writers, tmp_path: Path
) -> None:
    done: list[int] = []

    def block(number: int) -> None:
        done.append(number)
        if number == 1:
            one.hurry(is_hurried=True)

    await one.write(tmp_path, (lambda n=number: block(n) for number in range(BLOCKS)))
    assert done == list(range(BLOCKS))
    assert Spent.asked == 1


async def test_a_root_that_hangs_keeps_no_writer_of_another(tmp_path: Path) -> None:
    config = Config(socket=tmp_path / "s", state_dir=tmp_path, persist_threads=1)
    both, goes_on, done = Writers(config), threading.Event(), list[str]()

    def hang() -> None:
        assert goes_on.wait(30)
        done.append("hanging")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(both.write, tmp_path / "hanging", [hang])
        await until(lambda: is_somebody_in("hang"))
        await both.write(tmp_path / "well", [lambda: done.append("well")])
        goes_on.set()
    assert done == ["well", "hanging"]


async def test_all_writers_share_one_allowance(one: Writers, tmp_path: Path) -> None:
    async with anyio.create_task_group() as tasks:
        for name in ("a", "b"):  # the first block uses up what there is, also for the other root
            tasks.start_soon(one.write, tmp_path / name, [lambda: None, lambda: None])
        await until(lambda: Spent.asked == 3)
        tasks.cancel_scope.cancel()
    assert Spent.made == 1
