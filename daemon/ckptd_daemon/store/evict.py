"""What may go when the disk or the quota is full; pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ckptd_proto import errors


@dataclass(frozen=True, slots=True)
class Entry:
    """Something of the cache that takes room: a blob, or a partial that nobody is filling."""

    key: str
    size_bytes: int
    used_at: float


@dataclass(frozen=True, slots=True)
class Room:
    """The disk, and what the configuration allows of it. Sizes in bytes."""

    free: int
    floor: int
    quota: int | None
    used: int
    """What the cache takes, unfinished files included."""


def victims(candidates: Iterable[Entry], room: Room, need_bytes: int) -> list[Entry]:
    """Return the least recently used of the *candidates* to drop so that *need_bytes* fit.

    Raises `ResourceExhausted` with the numbers.
    """
    on_disk = room.free - room.floor
    available = on_disk if room.quota is None else min(on_disk, room.quota - room.used)
    chosen: list[Entry] = []
    for entry in sorted(candidates, key=lambda entry: entry.used_at):
        if available >= need_bytes:
            break
        chosen.append(entry)
        available += entry.size_bytes
    if available >= need_bytes:
        return chosen
    available = max(0, available)
    limits = f"{room.free} are free and {room.floor} stay so (free_floor_bytes)"
    if room.quota is not None:
        limits += f", the quota is {room.quota} (cache_bytes) and {room.used} of it are used"
    raise errors.ResourceExhausted(
        f"{need_bytes} bytes are needed, {available} can be had in the cache even after evicting "
        f"what nobody holds: {limits}; free some disk, raise the limit or release leases",
        need_bytes=need_bytes,
        free_bytes=available,
    )
