"""Slots and what each is used for: which serve a holder, and which give way. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Self

import anyio

from ckptd_daemon.save.arena.headers import Header, Laid, Taken
from ckptd_daemon.save.arena.slots import SlotFile
from ckptd_daemon.save.arena.survivors import LostSlot
from ckptd_daemon.save.places import Place
from ckptd_daemon.sessions import Process
from ckptd_proto import errors

GRAIN_BYTES: Final = 1 << 20  # so that a state whose pickled parts breathe still fits its old slot
WASTE_MAX: Final = 2  # times as large as need be is a slot that is still used
LEFT_MAX: Final = 128
"""Slots that nobody holds, whatever their size: each costs the daemon a descriptor and a mapping."""


class Use(Enum):
    """What a slot is doing."""

    COMING = "coming"
    IDLE = "idle"
    BUSY = "busy"
    GOING = "going"


@dataclass(slots=True, eq=False)
class Holder:
    """Who slots are kept for: one rank of a job, in one process."""

    name: str
    """The same in every life of the run, so that each finds what the one before has left."""
    uid: int
    gone: bool = False
    """Of its slots stays, while the memory is not needed, what is committed; for anybody to read."""
    rank: int = 0
    process: Process | None = None

    @classmethod
    def of(
        cls,
        rank: int,
        place: Place,
        uid: int,
        *,
        gone: bool = False,
        process: Process | None = None,
    ) -> Self:
        """Return the holder for a rank of the run in *place*."""
        return cls(f"rank {rank} of {place}", uid, gone, rank, process)

    def taken(self, attempt: str) -> Taken:
        """Return what a later daemon must know of a slot that it gets for *attempt*."""
        process = self.process or Process(0, 0, self.uid)
        return Taken(attempt, self.rank, self._key, process)

    def has(self, taken: Taken) -> bool:
        """Say whether it is the rank, and the process, that had a slot from an earlier daemon."""
        return self.taken(taken.attempt).is_of_same(taken)

    @property
    def _key(self) -> str:
        return hashlib.sha256(self.name.encode(errors="surrogatepass")).hexdigest()

    def succeeds(self, other: Holder) -> bool:
        """Say whether *other* has gone and was the same rank, in an earlier life of the run."""
        return other.gone and (other.name, other.uid) == (self.name, self.uid)


@dataclass(frozen=True, slots=True)
class Content:
    """What of a committed attempt lies in a slot."""

    attempt: str
    uid: int
    laid: tuple[Laid, ...]


@dataclass(slots=True, eq=False)
class Slot:
    """One slot, and what it is used for; the arena alone changes it."""

    holder: Holder
    size_bytes: int
    use: Use = Use.COMING
    file: SlotFile | LostSlot | None = None
    failure: errors.CkptdError | None = None
    purpose: str = ""
    touched: int = 0
    is_abandoned: bool = False
    """Its attempt is over, and its rank may not know yet and still write."""
    content: Content | None = None
    """Still there after its commit, until the memory is needed."""
    readers: int = 0
    """While there are any, it stays what it is."""
    settled: anyio.Event = field(default_factory=anyio.Event)
    """It has come, or will not."""

    @classmethod
    def of_sealed(cls, memory: SlotFile, header: Header) -> Self:
        """Return a slot that an earlier daemon left full; idle if what is in it is committed."""
        attempt = header.attempt
        holder = Holder.of(header.rank, attempt.job.place, attempt.job.uid, gone=True)
        slot = cls(holder, memory.size_bytes, Use.BUSY, memory)
        if header.is_kept:
            slot.use = Use.IDLE
            slot.content = Content(attempt.id, attempt.job.uid, header.laid)
        slot.settled.set()
        return slot

    @classmethod
    def of_lost(cls, lost: LostSlot) -> Self:
        """Return a slot that somebody may still be writing into: it counts until he does not."""
        taken = lost.taken
        name = f"rank {taken.rank} (pid {taken.process.pid}) of a save that a restart has ended"
        holder = Holder(name, taken.process.uid, gone=True)
        slot = cls(holder, lost.size_bytes, Use.BUSY, lost, purpose=name)
        slot.settled.set()
        return slot

    @property
    def is_free(self) -> bool:
        """Nobody writes, saves or reads it."""
        return self.use is Use.IDLE and not self.readers

    @property
    def is_left(self) -> bool:
        """It is free, and whoever held it has gone."""
        return self.is_free and self.holder.gone

    @property
    def memory(self) -> SlotFile:
        """The file; only slots that have come are handed out, never lost ones."""
        assert isinstance(self.file, SlotFile)
        return self.file

    @property
    def lost(self) -> LostSlot | None:
        """What an earlier daemon left, and somebody may still write into; None of any other."""
        if self.use is Use.BUSY and isinstance(self.file, LostSlot):
            return self.file
        return None

    def serves(self, size_bytes: int) -> bool:
        """Say whether a save of *size_bytes* uses it: not too small, not wasteful."""
        most = max(WASTE_MAX * size_bytes, GRAIN_BYTES)
        return self.use is not Use.GOING and size_bytes <= self.size_bytes <= most


def grained(size_bytes: int) -> int:
    """Return the size of the slot that is made for *size_bytes*."""
    return -(-size_bytes // GRAIN_BYTES) * GRAIN_BYTES


def fitting(slots: Iterable[Slot], holder: Holder, size_bytes: int) -> list[Slot]:
    """Return the holder's slots that a save of *size_bytes* uses."""
    return [slot for slot in slots if slot.holder is holder and slot.serves(size_bytes)]


def bequeathed(slots: Iterable[Slot], holder: Holder, size_bytes: int) -> list[Slot]:
    """Return what an earlier life of the holder has left and it can use, the longest idle first."""
    return [
        slot
        for slot in longest_idle(slots)
        if holder.succeeds(slot.holder) and slot.serves(size_bytes)
    ]


def ownerless(slots: Iterable[Slot], holder: Holder, size_bytes: int) -> Slot | None:
    """Return the longest idle slot that *holder* may have, as whoever held it has gone.

    Never another user's: what was in there could be read.
    """
    for slot in longest_idle(slots):
        if slot.is_left and slot.holder.uid == holder.uid and slot.serves(size_bytes):
            return slot
    return None


def useless(slots: Iterable[Slot]) -> list[Slot]:
    """Return what is left and worth nothing: without content, or the longest idle of too many."""
    left = [slot for slot in longest_idle(slots) if slot.is_left]
    read = [slot for slot in left if slot.content is not None]
    empty = [slot for slot in left if slot.content is None]
    return [*empty, *read[: max(0, len(read) - LEFT_MAX)]]


def longest_idle(slots: Iterable[Slot]) -> list[Slot]:
    """Return those that are free, the longest idle first."""
    return sorted((slot for slot in slots if slot.is_free), key=lambda slot: slot.touched)


def evictable(slots: Iterable[Slot], need_bytes: int) -> Sequence[Slot]:
    """Return the longest idle slots that together free *need_bytes*, or none."""
    chosen = surplus(slots, need_bytes)
    return chosen if sum(slot.size_bytes for slot in chosen) >= need_bytes else ()


def surplus(slots: Iterable[Slot], need_bytes: int) -> Sequence[Slot]:
    """Return the longest idle slots that together free *need_bytes*, or all if that is less."""
    chosen: list[Slot] = []
    for slot in longest_idle(slots):
        if need_bytes <= 0:
            break
        chosen.append(slot)
        need_bytes -= slot.size_bytes
    return chosen
