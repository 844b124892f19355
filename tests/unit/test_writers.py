"""Writers let the training go first, unless the machine is about to go away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptd_daemon.config import Config
from ckptd_daemon.save.images import writers
from ckptd_daemon.save.images.writers import Writers

BLOCKS = 20


class Spent:
    """An allowance that is used up after the first block."""

    asked = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def pause_s(self, used_s: float) -> float:
        Spent.asked += 1
        return 0.0 if Spent.asked == 1 else 3600.0


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Writers]:
    monkeypatch.setattr(writers, "Allowance", Spent)
    monkeypatch.setattr(Spent, "asked", 0)
    yield Writers(Config(socket=tmp_path / "s", state_dir=tmp_path, persist_threads=1))


async def test_when_time_is_short_nothing_is_left_to_the_training(one: Writers) -> None:
    done: list[int] = []
    one.hurry(is_hurried=True)
    await one.write(lambda n=number: done.append(n) for number in range(BLOCKS))
    assert sorted(done) == list(range(BLOCKS))
    assert Spent.asked == 0


async def test_what_is_being_written_when_time_gets_short_hurries_too(one: Writers) -> None:
    done: list[int] = []

    def block(number: int) -> None:
        done.append(number)
        if number == 1:
            one.hurry(is_hurried=True)

    await one.write(lambda n=number: block(n) for number in range(BLOCKS))
    assert done == list(range(BLOCKS))
    assert Spent.asked == 1
