"""What the ranks of several nodes make of a node that has no room."""

from __future__ import annotations

from ckptd.saving.fullness import Room, reason_to_skip, victim

FREE = Room(full=False, waiting=[], writing=True, held=[4])
FULL = Room(full=True, waiting=[5, 6], writing=True, held=[40, 50, 60])


def test_a_save_is_skipped_if_any_node_has_no_room_and_the_reason_names_it() -> None:
    assert reason_to_skip(70, [FREE, FREE]) == ""
    said = reason_to_skip(70, [FREE, FULL, None])
    assert said.startswith("step 70 was skipped: every slot on the node of rank 1 is taken, by")
    assert "by step 40, 50, 60;" in said


def test_the_oldest_that_waits_where_there_is_no_room_gives_way() -> None:
    other = Room(full=True, waiting=[4, 6], writing=True, held=[])
    waiting = Room(full=False, waiting=[1], writing=True, held=[])
    assert victim([FREE, FULL, waiting]) == 5
    assert victim([FULL, other]) == 4


def test_nothing_gives_way_where_there_is_room_or_nothing_else_is_being_written() -> None:
    assert victim([FREE, None]) is None
    assert victim([Room(full=True, waiting=[5], writing=False, held=[50])]) is None
    assert victim([Room(full=True, waiting=[], writing=True, held=[50])]) is None
