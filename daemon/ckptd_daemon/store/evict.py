"""What may go when the disk or the quota is full, and who must wait; pure. Sizes in bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ckptd_proto import errors


@dataclass(frozen=True, slots=True)
class Entry:
    """Something of the cache that takes room: a directory, by the name of its blob."""

    path: Path
    size_bytes: int
    used_at: float

    @property
    def key(self) -> str:
        """The key of the blob that it is, was, or will be."""
        return self.path.name.partition("-")[0]


@dataclass(frozen=True, slots=True)
class Room:
    """The disk, and what the configuration allows of it, for one newcomer."""

    free: int
    """Less what others have booked and not written yet."""
    floor: int
    quota: int | None
    used: int
    """What the others take, and have booked."""

    @property
    def available(self) -> int:
        """What can be had without evicting."""
        on_disk = self.free - self.floor
        return on_disk if self.quota is None else min(on_disk, self.quota - self.used)

    @property
    def is_short_of_quota(self) -> bool:
        """Whether the quota binds before the disk does."""
        return self.quota is not None and self.quota - self.used < self.free - self.floor


@dataclass(frozen=True, slots=True)
class Holders:
    """Who holds what cannot be evicted now."""

    size_bytes: int
    leases: int
    open_files: int
    fetches: int
    own_bytes: int = 0
    """Of `size_bytes`: held, for as long as they wait, by those who are waiting for room."""

    def __str__(self) -> str:
        counts = ((self.leases, "lease"), (self.open_files, "open file"), (self.fetches, "fetch"))
        words = [f"{count} {one}{_plural(one) * (count != 1)}" for count, one in counts if count]
        return " and ".join(words) or "nobody"


def _plural(noun: str) -> str:
    return "es" if noun.endswith("ch") else "s"


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a newcomer of *need_bytes* is not let in now."""

    need_bytes: int
    room: Room
    evictable_bytes: int
    holders: Holders
    ahead: int = 0
    """How many came before it and wait, too."""

    @property
    def may_pass(self) -> bool:
        """Whether it would fit once everybody who is here has left."""
        return self.need_bytes <= self._reachable

    @property
    def _reachable(self) -> int:
        return self.room.available + self.evictable_bytes + self.holders.size_bytes

    @property
    def is_own(self) -> bool:
        """Whether it would fit only if those who wait for it gave up what they hold themselves."""
        return self.need_bytes > self._reachable - self.holders.own_bytes

    def leaves_room_for(self, first_bytes: int) -> bool:
        """Whether somebody who needs *first_bytes* fits beside it, once the others have left."""
        return self.need_bytes + first_bytes <= self._reachable

    def __str__(self) -> str:
        free = max(0, self.room.available)
        words = f"{self.need_bytes} bytes are needed, {free} are free"
        words += " of the quota" if self.room.is_short_of_quota else " on the disk"
        words += f" and {self.evictable_bytes} can be evicted; {self.holders} hold the rest"
        return words + (f", and {self.ahead} came before" if self.ahead else "")

    def error(self, waited_s: float) -> errors.ResourceExhausted:
        """Return the refusal, with the numbers."""
        limits = f"{self.room.free} bytes are free on the disk and {self.room.floor} stay so"
        limits += " (free_floor_bytes, free_floor_percent)"
        if self.room.quota is not None:
            limits += f", the quota is {self.room.quota} (cache_bytes), {self.room.used} are used"
        advice = "free some disk, raise the limit or release leases"
        if self.may_pass and self.is_own:
            advice = (
                f"{self.holders.own_bytes} bytes are held by leases of the very processes that ask, "
                "so that waiting is in vain: hold files no longer than needed (`with ckptd.open(…)`), "
                "or raise the limit"
            )
        waited = f" after {waited_s:.0f} s of waiting" if waited_s >= 1 else ""
        return errors.ResourceExhausted(
            f"there is no room in the cache{waited}: {self}: {limits}; {advice}",
            need_bytes=self.need_bytes,
            free_bytes=max(0, self.room.available),
            evictable_bytes=self.evictable_bytes,
        )


def victims(candidates: Iterable[Entry], room: Room, need_bytes: int) -> list[Entry] | None:
    """Return the least recently used to drop so that *need_bytes* fit; None if they never do."""
    available = room.available
    chosen: list[Entry] = []
    for entry in sorted(candidates, key=lambda entry: entry.used_at):
        if available >= need_bytes:
            break
        chosen.append(entry)
        available += entry.size_bytes
    return chosen if available >= need_bytes else None


def surplus(
    candidates: Iterable[Entry], used_bytes: int, *, high_bytes: int, low_bytes: int
) -> list[Entry]:
    """Return what to drop, once more than *high_bytes* are used, to come down to *low_bytes*.

    The least recently used go first, and nothing that is larger than what is too much: one big
    file is not given up for a little air.
    """
    chosen: list[Entry] = []
    if used_bytes <= high_bytes:
        return chosen
    for entry in sorted(candidates, key=lambda entry: entry.used_at):
        if 0 < entry.size_bytes <= used_bytes - low_bytes:
            chosen.append(entry)
            used_bytes -= entry.size_bytes
    return chosen
