"""What becomes of a save when a node has no memory left to stage it: the same on every rank. Pure.

A daemon decides it alone for the ranks of one node. If there are several, each rank's header says
what its daemon has, and every rank comes to the same conclusion from all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class Room(TypedDict):
    """What a job's saves take of the memory of one daemon; travels in headers."""

    full: bool
    """The next save would have to wait."""
    waiting: list[int]
    """The sequences of those that are staged and that nobody has begun to write."""
    writing: bool
    """One of them is being written."""
    held: list[int]
    """The steps of all of them."""


def reason_to_skip(step: int, rooms: Sequence[Room | None]) -> str:
    """Return why *step* is not to be saved, in words that are the same on every rank; else empty."""
    for rank, room in enumerate(rooms):
        if room is not None and room["full"]:
            held = ", ".join(map(str, room["held"])) or "of another run"
            text = f"step {step} was skipped: every slot on the node of rank {rank} is taken"
            advice = "save less often, or raise `slots_per_rank` or `arena_bytes`"
            return f"{text}, by step {held}; {advice}"
    return ""


def victim(rooms: Sequence[Room | None]) -> int | None:
    """Return the sequence of the save that gives way to the next; None if that waits, or need not.

    It is the oldest that a node without room has not begun to write: never the only one, for that
    node is writing another just then.
    """
    full = [room for room in rooms if room is not None and room["full"] and room["writing"]]
    return min((sequence for room in full for sequence in room["waiting"]), default=None)
