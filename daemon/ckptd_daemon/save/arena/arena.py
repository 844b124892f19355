"""The arena: who has which slot of shared memory, and who waits for one."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final, Self

import anyio
from anyio.abc import TaskGroup

from ckptd_daemon.config import Config
from ckptd_daemon.save.arena import slots
from ckptd_daemon.save.arena.budget import room_bytes
from ckptd_daemon.save.arena.headers import Header, Laid
from ckptd_daemon.save.arena.slots import SlotFile
from ckptd_proto import errors

logger = logging.getLogger(__name__)

GRAIN_BYTES: Final = 1 << 20  # so that a state whose pickled parts breathe still fits its old slot
WASTE_MAX: Final = 2  # times as large as need be is a slot that is still used


class _Use(Enum):
    COMING = "coming"
    IDLE = "idle"
    BUSY = "busy"
    GOING = "going"


@dataclass(slots=True, eq=False)
class Holder:
    """Who slots are kept for: one rank of a job, in one process."""

    name: str
    gone: bool = False
    """Its slots are given back as soon as they are idle."""


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
    use: _Use = _Use.COMING
    file: SlotFile | None = None
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

    @property
    def is_free(self) -> bool:
        """Nobody writes, saves or reads it."""
        return self.use is _Use.IDLE and not self.readers

    @property
    def memory(self) -> SlotFile:
        """The file; only slots that have come are handed out."""
        assert self.file is not None
        return self.file


@dataclass(frozen=True, slots=True)
class ArenaStatistics:
    """What the arena holds now."""

    used_bytes: int
    budget_bytes: int
    slots: int
    idle_slots: int


@dataclass(frozen=True, slots=True)
class SlotOffer:
    """A slot, and the token for its descriptor; no token if the caller has it mapped."""

    id: str
    size_bytes: int
    token: str


class Arena:
    """Slots within a budget; full means wait, too large means no."""

    def __init__(
        self, directory: Path, budget_bytes: int, slots_per_rank: int, tasks: TaskGroup
    ) -> None:
        self._directory = directory
        self._budget_bytes = budget_bytes
        self._slots_per_rank = slots_per_rank
        self._tasks = tasks  # creates and destroys slots, whoever stops waiting
        self._slots: list[Slot] = []  # every slot whose memory counts
        self._changed = anyio.Event()  # replaced at every change
        self._clock = 0  # orders idle slots by last use

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Config) -> AsyncIterator[tuple[Self, list[tuple[Slot, Header]]]]:
        """Give an arena, and the sealed slots that an earlier daemon left in it.

        At the end idle slots are given back; sealed ones stay for the next start.
        """
        directory = _directory(config)
        left, room = await anyio.to_thread.run_sync(_take_over, directory)
        kept_bytes = sum(memory.size_bytes for memory, _ in left)
        budget = config.arena_bytes or kept_bytes + room // 2
        async with anyio.create_task_group() as tasks:
            arena = cls(directory, budget, config.slots_per_rank, tasks)
            recovered = [(arena._adopt(memory), header) for memory, header in left]
            try:
                yield arena, recovered
            finally:
                with anyio.CancelScope(shield=True):
                    await arena._close()

    def __repr__(self) -> str:
        figures = self.statistics()
        return f"<Arena [{figures.slots} slots, {figures.used_bytes}/{figures.budget_bytes} bytes]>"

    def statistics(self) -> ArenaStatistics:
        """Return counts and bytes as they are now."""
        idle = sum(slot.use is _Use.IDLE for slot in self._slots)
        return ArenaStatistics(self._used_bytes, self._budget_bytes, len(self._slots), idle)

    @property
    def _used_bytes(self) -> int:
        return sum(slot.size_bytes for slot in self._slots)

    def check_fits(self, size_bytes: int, *, beside_bytes: int = 0) -> None:
        """Raise `ResourceExhausted` if so much can never be held, *beside_bytes* being in use."""
        need = _grained(size_bytes) + beside_bytes
        if need > self._budget_bytes:
            beside = f" beside {beside_bytes} of the same save" if beside_bytes else ""
            text = (
                f"staging needs {_grained(size_bytes)} bytes{beside} and the arena in "
                f"{self._directory.parent} may hold {self._budget_bytes}: "
                f"raise `arena_bytes` or the size of that filesystem"
            )
            free = max(0, self._budget_bytes - beside_bytes)
            raise errors.ResourceExhausted(text, need_bytes=_grained(size_bytes), free_bytes=free)

    async def reserve(
        self, holder: Holder, size_bytes: int, *, purpose: str, timeout_s: float
    ) -> Slot:
        """Return a slot of at least *size_bytes*, busy from now on; waits for one to come free.

        Raises `DeadlineExceeded` saying what holds the others.
        """
        try:
            with anyio.fail_after(timeout_s):
                while (slot := self._take(holder, size_bytes, purpose)) is None:
                    await self._wait_progress(holder, size_bytes)
        except TimeoutError:
            held = ", ".join(sorted({slot.purpose for slot in self._slots if slot.purpose}))
            text = (
                f"no slot of {size_bytes} bytes came free in {timeout_s:g} s: {self._used_bytes} of "
                f"{self._budget_bytes} bytes are held by {held or 'idle slots'}; save less often, "
                f"or raise `arena_bytes`"
            )
            raise errors.DeadlineExceeded(text) from None
        return slot

    async def prepare(self, holder: Holder, size_bytes: int) -> list[Slot]:
        """Return the holder's slots once they are as many and as large as the budget allows."""
        self.check_fits(size_bytes)
        size = _grained(size_bytes)
        while len(self._fitting(holder, size)) < self._slots_per_rank:
            if (coming := self._make_room(holder, size)) is None:
                break
            await coming.settled.wait()
            if coming.failure is not None and not self._fitting(holder, size):
                raise coming.failure
            if coming.failure is not None:
                break
        return [slot for slot in self._fitting(holder, size) if slot.use is _Use.IDLE]

    def is_full(self, holder: Holder) -> bool:
        """Say whether the holder's next slot is one that others have to give back first."""
        mine = [slot for slot in self._slots if slot.holder is holder]
        if not mine or any(slot.use is not _Use.BUSY or slot.is_abandoned for slot in mine):
            return False
        if len(mine) >= self._slots_per_rank:
            return True
        idle_bytes = sum(slot.size_bytes for slot in self._slots if slot.use is _Use.IDLE)
        need_bytes = self._used_bytes - idle_bytes + mine[-1].size_bytes
        return need_bytes > self._budget_bytes

    def release(self, slot: Slot, content: Content | None = None) -> None:
        """Take a slot back; what was sealed in it is void, and *content* may be read there yet."""
        slot.memory.unseal()
        slot.use, slot.purpose, slot.content = _Use.IDLE, "", content
        self._clock += 1
        slot.touched = self._clock
        if slot.holder.gone:
            self._give_back([slot])
        self._tell()

    def abandon(self, slot: Slot) -> None:
        """Take a slot back as soon as its holder is known to write no more: see `settle`.

        Memory given back under a writer's hands would come again, and nobody would count it.
        """
        slot.memory.unseal()
        slot.is_abandoned = True

    def holding(self, attempt_id: str) -> list[Slot]:
        """Return the slots in which images of a committed attempt still lie."""
        idle = (slot for slot in self._slots if slot.use is _Use.IDLE)
        return [slot for slot in idle if slot.content and slot.content.attempt == attempt_id]

    @contextmanager
    def lend(self, held: Sequence[Slot]) -> Iterator[None]:
        """While inside, what is *held* is read: nobody else gets these slots."""
        for slot in held:
            slot.readers += 1
        try:
            yield
        finally:
            for slot in held:
                slot.readers -= 1
            self._give_back([slot for slot in held if slot.holder.gone and slot.is_free])
            self._tell()

    def settle(self, holder: Holder) -> None:
        """Note that the holder writes nothing now into slots of attempts that are over."""
        for slot in [slot for slot in self._slots if slot.holder is holder and slot.is_abandoned]:
            slot.is_abandoned = False
            self.release(slot)

    def forget(self, holder: Holder) -> None:
        """Give back what is kept for a rank that has gone."""
        holder.gone = True
        mine = [slot for slot in self._slots if slot.holder is holder]
        self._give_back([slot for slot in mine if slot.is_free])

    def _take(self, holder: Holder, size_bytes: int, purpose: str) -> Slot | None:
        size = _grained(size_bytes)
        free = [slot for slot in self._fitting(holder, size) if slot.is_free]
        if not free:
            return None
        slot = min(free, key=lambda slot: slot.touched)  # the newest content stays the longest
        slot.use, slot.purpose, slot.content = _Use.BUSY, purpose, None
        return slot

    async def _wait_progress(self, holder: Holder, size_bytes: int) -> None:
        changed = self._changed
        coming = self._make_room(holder, _grained(size_bytes))
        if coming is None:
            await changed.wait()
            return
        await coming.settled.wait()
        if coming.failure is not None:
            raise coming.failure

    def _fitting(self, holder: Holder, size: int) -> list[Slot]:
        """Return the holder's slots that a save of *size* uses: not too small, not wasteful."""
        return [
            slot
            for slot in self._slots
            if slot.holder is holder
            and slot.use is not _Use.GOING
            and size <= slot.size_bytes <= max(WASTE_MAX * size, GRAIN_BYTES)
        ]

    def _make_room(self, holder: Holder, size: int) -> Slot | None:
        """Begin what brings a slot nearer; None if only others can, by finishing."""
        staying = [slot for slot in self._slots if slot.use is not _Use.GOING]
        mine = [slot for slot in staying if slot.holder is holder]
        for slot in mine:
            if slot.use is _Use.COMING and slot.size_bytes >= size:
                return slot
        fitting = self._fitting(holder, size)
        misfits = [slot for slot in mine if slot.is_free and slot not in fitting]
        if misfits:
            self._give_back(misfits)
        if len(mine) - len(misfits) >= self._slots_per_rank:
            return None
        staying_bytes = sum(slot.size_bytes for slot in staying if slot not in misfits)
        if staying_bytes + size > self._budget_bytes:
            self._give_back(self._evictable(staying_bytes + size - self._budget_bytes))
        if self._used_bytes + size > self._budget_bytes:
            return None
        slot = Slot(holder, size)
        self._slots.append(slot)
        self._tasks.start_soon(self._create, slot)
        return slot

    def _evictable(self, need_bytes: int) -> list[Slot]:
        """Return the longest idle slots that together free *need_bytes*, or none."""
        idle = (slot for slot in self._slots if slot.is_free)
        chosen: list[Slot] = []
        for slot in sorted(idle, key=lambda slot: slot.touched):
            if need_bytes <= 0:
                break
            chosen.append(slot)
            need_bytes -= slot.size_bytes
        return chosen if need_bytes <= 0 else []

    def _adopt(self, memory: SlotFile) -> Slot:
        slot = Slot(Holder("an earlier daemon's rank", gone=True), memory.size_bytes, _Use.BUSY)
        slot.file = memory
        self._slots.append(slot)
        return slot

    async def _create(self, slot: Slot) -> None:
        try:
            slot.file = await anyio.to_thread.run_sync(
                _create_within_room, self._directory, slot.size_bytes
            )
            slot.use = _Use.IDLE
        except errors.CkptdError as failure:
            slot.failure = failure
            self._slots.remove(slot)
        slot.settled.set()
        if slot.file is not None and slot.holder.gone:
            self._give_back([slot])
        self._tell()

    def _give_back(self, idle: Iterable[Slot]) -> None:
        for slot in idle:
            slot.use = _Use.GOING
            self._tasks.start_soon(self._destroy, slot)

    async def _destroy(self, slot: Slot) -> None:
        await anyio.to_thread.run_sync(slot.memory.destroy)
        self._slots.remove(slot)
        self._tell()

    async def _close(self) -> None:
        for slot in self._slots:
            if slot.use is _Use.IDLE:
                await anyio.to_thread.run_sync(slot.memory.destroy)
            elif slot.use is _Use.BUSY:
                slot.memory.close()
        await anyio.to_thread.run_sync(_remove_if_empty, self._directory)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def _grained(size_bytes: int) -> int:
    return -(-size_bytes // GRAIN_BYTES) * GRAIN_BYTES


def _directory(config: Config) -> Path:
    key = hashlib.sha256(os.fsencode(config.state_dir)).hexdigest()[:16]
    return config.arena_dir / f"ckptd-{os.geteuid()}-{key}"


def _take_over(directory: Path) -> tuple[list[tuple[SlotFile, Header]], int]:
    slots.own_directory(directory)
    left = list(slots.survivors(directory))
    return left, room_bytes(directory)


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):  # what is sealed stays for the next start, and nothing else matters
        directory.rmdir()


def _create_within_room(directory: Path, size_bytes: int) -> SlotFile:
    """Create a slot unless the node lacks the memory now, whatever the budget says."""
    room = room_bytes(directory)
    if size_bytes > room:
        text = (
            f"staging needs {size_bytes} bytes and {directory.parent} or the memory has {room} "
            f"free; free some, or enlarge it"
        )
        raise errors.ResourceExhausted(text, need_bytes=size_bytes, free_bytes=room)
    return slots.create(directory, size_bytes)
