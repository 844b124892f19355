"""Which slot of the arena serves whom, and which gives way."""

from __future__ import annotations

from pathlib import Path

from ckptd_daemon.save.arena import uses
from ckptd_daemon.save.arena.uses import GRAIN_BYTES, LEFT_MAX, Content, Holder, Slot, Use
from ckptd_daemon.save.places import Place

PLACE = Place(Path("/root"), "e", "r")
UID, SIZE = 7, 8 * GRAIN_BYTES


def slot(holder: Holder, touched: int = 0, size_bytes: int = SIZE, **more: int) -> Slot:
    return Slot(holder, size_bytes, Use.IDLE, touched=touched, **more)


def rank(number: int, uid: int = UID, *, gone: bool = False) -> Holder:
    return Holder.of(number, PLACE, uid, gone=gone)


def test_a_rank_inherits_from_its_earlier_self_alone_and_the_longest_idle_first() -> None:
    mine = [slot(rank(0, gone=True), touched) for touched in (2, 1)]
    others = [slot(rank(1, gone=True)), slot(rank(0)), slot(rank(0, uid=8, gone=True))]
    unfit = [slot(rank(0, gone=True), size_bytes=size) for size in (SIZE // 2, 3 * SIZE)]
    read = slot(rank(0, gone=True), readers=1)
    all_slots = [*mine, *others, *unfit, read]
    assert uses.bequeathed(all_slots, rank(0), SIZE) == [mine[1], mine[0]]


def test_what_another_rank_left_goes_to_the_same_user_only() -> None:
    theirs, held = slot(rank(1, uid=8, gone=True)), slot(rank(1))
    newer, older = slot(rank(2, gone=True), 4), slot(rank(3, gone=True), 3)
    assert uses.ownerless([theirs, held, newer, older], rank(0), SIZE) is older
    assert uses.ownerless([theirs, held], rank(0), SIZE) is None


def test_what_is_left_without_content_is_useless_and_so_are_the_longest_idle_of_too_many() -> None:
    content = Content("attempt", UID, ())
    kept = [slot(rank(n, gone=True), touched=LEFT_MAX - n) for n in range(LEFT_MAX + 2)]
    for one in kept:
        one.content = content
    empty, held, read = slot(rank(0, gone=True)), slot(rank(0)), slot(rank(0, gone=True), readers=1)
    assert uses.useless([empty, held, read, *kept]) == [empty, kept[-1], kept[-2]]
    assert uses.useless(kept[:-2]) == []


def test_the_longest_idle_give_way_and_none_if_that_is_not_enough() -> None:
    slots = [slot(rank(0), 3), slot(rank(0), 1), slot(rank(0), 2), slot(rank(0), 0, readers=1)]
    assert uses.evictable(slots, SIZE + 1) == [slots[1], slots[2]]
    assert not uses.evictable(slots, 3 * SIZE + 1)
    assert uses.surplus(slots, 3 * SIZE + 1) == [slots[1], slots[2], slots[0]]
    assert not uses.surplus(slots, 0)
