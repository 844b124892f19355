"""The least recently used go first, no more than needed, and never what is not offered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.store.evict import Entry, Room, victims
from ckptd_proto import errors

entries = st.lists(
    st.builds(
        Entry, key=st.uuids().map(str), size_bytes=st.integers(0, 100), used_at=st.floats(0, 9)
    )
)


@given(entries, st.integers(0, 500), st.integers(0, 200), st.integers(0, 100))
def test_victims_suffice_and_none_is_needless(
    candidates: list[Entry], need: int, free: int, floor: int
) -> None:
    room = Room(free=free, floor=floor, quota=None, used=0)
    total = sum(entry.size_bytes for entry in candidates)
    if free - floor + total < need:
        with pytest.raises(errors.ResourceExhausted) as caught:
            victims(candidates, room, need)
        assert caught.value.need_bytes == need
        assert caught.value.free_bytes == max(0, free - floor + total)
        return
    chosen = victims(candidates, room, need)
    freed = [entry.size_bytes for entry in chosen]
    assert free - floor + sum(freed) >= need
    assert not chosen or free - floor + sum(freed[:-1]) < need
    kept = [entry.used_at for entry in candidates if entry not in chosen]
    assert all(entry.used_at <= at for entry in chosen for at in kept)


def test_a_quota_binds_before_the_disk_does() -> None:
    old, new = Entry("old", 40, 1.0), Entry("new", 40, 2.0)
    room = Room(free=1000, floor=0, quota=100, used=80)
    assert victims([new, old], room, 20) == []
    assert victims([new, old], room, 21) == [old]
