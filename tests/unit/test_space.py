"""Room is given out at the cost of one look at the disk for many, and never twice."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from ckptd_daemon.config import Config
from ckptd_daemon.store import durable
from ckptd_daemon.store.blobs import BlobStore
from ckptd_daemon.store.room import Space
from ckptd_proto.errors import ResourceExhausted

MIB = 1 << 20


def space(path: Path, cache_bytes: int | None, **floors: int) -> Space:
    store = BlobStore(path)
    store.load()
    settings = {"free_floor_bytes": 0, "free_floor_percent": 0, **floors}
    config = Config(state_dir=path, cache_bytes=cache_bytes, wait_for_room_s=0, **settings)
    return Space(store, lambda _: 0, config)


def never(_: object) -> None:
    raise AssertionError


@pytest.mark.anyio
async def test_while_there_is_plenty_many_are_let_in_by_few_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []

    def look(path: Path) -> tuple[int, int]:
        looks.append(path)
        return 1 << 40, 1 << 41

    monkeypatch.setattr(durable, "disk_bytes", look)
    room = space(tmp_path, 1 << 30)
    for index in range(500):
        async with room.book(f"{index}", MIB, never):
            continue
    assert len(looks) < 250  # one each, and a walk over all that there is, was the rule


@pytest.mark.anyio
@pytest.mark.parametrize("look_s", [0.0, 600.0], ids=["looks_again", "looks_once"])
async def test_what_one_look_found_is_given_out_once(
    look_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptd_daemon.store.room.LOOK_S", look_s)
    room = space(tmp_path, 100 * MIB)
    async with AsyncExitStack() as booked:
        for index in range(10):
            await booked.enter_async_context(room.book(f"{index}", 10 * MIB, never))
        with pytest.raises(ResourceExhausted):
            async with room.book("late", 10 * MIB, never):
                pass


@pytest.mark.anyio
async def test_what_an_earlier_flight_left_takes_room_too(tmp_path: Path) -> None:
    room = space(tmp_path, 100 * MIB)
    left = tmp_path / "partials" / "left"
    left.mkdir()
    (left / "data").write_bytes(bytes(40 * MIB))
    async with room.book("left", 40 * MIB, never), room.book("one", 60 * MIB, never):
        with pytest.raises(ResourceExhausted):
            async with room.book("late", MIB, never):
                pass


@pytest.mark.anyio
@pytest.mark.parametrize("floor", [{"free_floor_bytes": 300 * MIB}, {"free_floor_percent": 30}])
async def test_the_last_of_the_disk_is_given_to_nobody(
    floor: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "disk_bytes", lambda _: (400 * MIB, 1000 * MIB))
    room = space(tmp_path, None, **floor)
    async with room.book("fits", 100 * MIB, never):
        pass
    with pytest.raises(ResourceExhausted, match=f"{300 * MIB} stay so"):
        async with room.book("does not", 101 * MIB, never):
            pass
