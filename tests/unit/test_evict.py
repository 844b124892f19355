"""The least recently used go first, no more than needed, and never what is not offered."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.store.evict import Entry, Holders, Room, Shortage, surplus, victims
from ckptd_proto import errors

entries = st.lists(
    st.builds(
        Entry,
        path=st.uuids().map(lambda name: Path(name.hex)),
        size_bytes=st.integers(0, 100),
        used_at=st.floats(0, 9),
    ),
    max_size=12,
)
NOBODY = Holders(0, 0, 0, 0)


def total(chosen: list[Entry]) -> int:
    return sum(entry.size_bytes for entry in chosen)


@given(entries, st.integers(0, 500), st.integers(0, 200), st.integers(0, 100))
def test_victims_suffice_and_none_is_needless(
    candidates: list[Entry], need: int, free: int, floor: int
) -> None:
    room = Room(free=free, floor=floor, quota=None, used=0)
    chosen = victims(candidates, room, need)
    if chosen is None:
        assert free - floor + total(candidates) < need
        return
    assert free - floor + total(chosen) >= need
    assert not chosen or free - floor + total(chosen[:-1]) < need
    kept = [entry.used_at for entry in candidates if entry not in chosen]
    assert all(entry.used_at <= at for entry in chosen for at in kept)


def test_a_quota_binds_before_the_disk_does() -> None:
    old, new = Entry(Path("old"), 40, 1.0), Entry(Path("new"), 40, 2.0)
    room = Room(free=1000, floor=0, quota=100, used=80)
    assert victims([new, old], room, 20) == []
    assert victims([new, old], room, 21) == [old]


@given(entries, st.integers(0, 1500), st.integers(0, 1000), st.integers(0, 1000))
def test_watermarks_trim_only_what_is_too_much(
    candidates: list[Entry], used: int, one: int, other: int
) -> None:
    low, high = sorted((one, other))
    chosen = surplus(candidates, used, high_bytes=high, low_bytes=low)
    if used <= high:
        assert chosen == []
    assert used - total(chosen) >= min(used, low)
    spared = [entry for entry in candidates if entry not in chosen and entry.size_bytes]
    left = used - total(chosen) - low
    assert used <= high or all(entry.size_bytes > left for entry in spared)


def test_one_big_file_is_not_given_up_for_a_little_air() -> None:
    big, small = Entry(Path("big"), 60, 1.0), Entry(Path("small"), 10, 2.0)
    assert surplus([big, small], 90, high_bytes=85, low_bytes=75) == [small]


def shortage(need: int, *, free: int, evictable: int = 0, held: int = 0) -> Shortage:
    room = Room(free=free, floor=0, quota=None, used=0)
    return Shortage(need, room, evictable, Holders(held, 1, 0, 0))


def test_who_fits_once_others_have_left_may_wait_and_who_never_fits_may_not() -> None:
    assert shortage(100, free=20, evictable=30, held=50).may_pass
    assert not shortage(101, free=20, evictable=30, held=50).may_pass


def test_a_small_one_may_pass_if_the_first_still_fits_when_the_others_have_left() -> None:
    small = shortage(10, free=20, held=80)
    assert small.leaves_room_for(90)
    assert not small.leaves_room_for(91)


def test_the_refusal_carries_the_numbers_and_says_who_holds_what() -> None:
    room = Room(free=500, floor=100, quota=90, used=70)
    refused = Shortage(60, room, 5, Holders(65, leases=2, open_files=1, fetches=2)).error(12.0)
    assert isinstance(refused, errors.ResourceExhausted)
    numbers = refused.need_bytes, refused.free_bytes, refused.evictable_bytes
    assert numbers == (60, 20, 5)
    assert "2 leases and 1 open file and 2 fetches hold the rest" in str(refused)
    assert "after 12 s" in str(refused)
    assert "the quota is 90 (cache_bytes), 70 are used" in str(refused)


@pytest.mark.parametrize(("used", "short"), [(95, True), (0, False)])
def test_it_is_told_whether_disk_or_quota_binds(used: int, short: bool) -> None:
    assert Room(free=50, floor=0, quota=100, used=used).is_short_of_quota == short
