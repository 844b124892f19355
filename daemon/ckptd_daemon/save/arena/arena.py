"""The arena: who has which slot of shared memory, and who waits for one."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Self

import anyio
from anyio.abc import TaskGroup, TaskStatus

from ckptd_daemon.config import Config
from ckptd_daemon.save.arena import pages, slots, uses
from ckptd_daemon.save.arena.budget import is_scarce, room_bytes
from ckptd_daemon.save.arena.headers import Header
from ckptd_daemon.save.arena.slots import SlotFile
from ckptd_daemon.save.arena.survivors import LostSlot, survivors
from ckptd_daemon.save.arena.uses import Content, Holder, Slot, Use, grained
from ckptd_proto import errors

logger = logging.getLogger(__name__)

_LOOK_S: Final = 1.0  # between two looks at what memory the node has, while something is left here


@dataclass(frozen=True, slots=True)
class ArenaStatistics:
    """What the arena holds now."""

    used_bytes: int
    budget_bytes: int
    slots: int
    idle_slots: int


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
        """Give an arena, and the slots with unfinished saves that an earlier daemon left in it.

        At the end idle slots are given back; sealed ones stay for the next start.
        """
        directory = _directory(config)
        left, lost, room = await anyio.to_thread.run_sync(
            _take_over, directory, not config.save_roots
        )
        budget = config.arena_bytes or _half(left, lost, room)
        async with anyio.create_task_group() as tasks:
            arena = cls(directory, budget, config.slots_per_rank, tasks)
            adopted = [(arena._adopt(memory, header), header) for memory, header in left]
            for one in lost:
                arena._leave(one)
            arena._give_back(uses.surplus(arena._slots, arena._used_bytes - budget))
            recovered = [one for one in adopted if one[0].use is Use.BUSY]
            watches = [
                await tasks.start(arena._yield_memory),
                await tasks.start(arena._watch_lost),
            ]
            try:
                yield arena, recovered
            finally:
                for watch in watches:
                    watch.cancel()
                with anyio.CancelScope(shield=True):
                    await arena._close()

    def __repr__(self) -> str:
        figures = self.statistics()
        return f"<Arena [{figures.slots} slots, {figures.used_bytes}/{figures.budget_bytes} bytes]>"

    def statistics(self) -> ArenaStatistics:
        """Return counts and bytes as they are now."""
        idle = sum(slot.use is Use.IDLE for slot in self._slots)
        return ArenaStatistics(self._used_bytes, self._budget_bytes, len(self._slots), idle)

    @property
    def _used_bytes(self) -> int:
        return sum(slot.size_bytes for slot in self._slots)

    def check_fits(self, size_bytes: int, *, beside_bytes: int = 0) -> None:
        """Raise `ResourceExhausted` if so much can never be held, *beside_bytes* being in use."""
        need = grained(size_bytes) + beside_bytes
        if need > self._budget_bytes:
            beside = f" beside {beside_bytes} of the same save" if beside_bytes else ""
            text = (
                f"staging needs {grained(size_bytes)} bytes{beside} and the arena in "
                f"{self._directory.parent} may hold {self._budget_bytes}: "
                f"raise `arena_bytes` or the size of that filesystem"
            )
            free = max(0, self._budget_bytes - beside_bytes)
            raise errors.ResourceExhausted(text, need_bytes=grained(size_bytes), free_bytes=free)

    async def reserve(
        self,
        holder: Holder,
        size_bytes: int,
        *,
        purpose: str,
        timeout_s: float,
        attempt: str = "",
    ) -> Slot:
        """Return a slot of at least *size_bytes*, busy from now on; waits for one to come free.

        Raises `DeadlineExceeded` saying what holds the others.
        """
        try:
            with anyio.fail_after(timeout_s):
                while (slot := self._take(holder, size_bytes, purpose, attempt)) is None:
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
        size = grained(size_bytes)
        self._inherit(holder, size)
        while len(uses.fitting(self._slots, holder, size)) < self._slots_per_rank:
            if (coming := self._make_room(holder, size)) is None:
                break
            await coming.settled.wait()
            if coming.failure is not None and not uses.fitting(self._slots, holder, size):
                raise coming.failure
            if coming.failure is not None:
                break
        return [slot for slot in uses.fitting(self._slots, holder, size) if slot.use is Use.IDLE]

    def is_full(self, holder: Holder) -> bool:
        """Say whether the holder's next slot is one that others have to give back first."""
        mine = [slot for slot in self._slots if slot.holder is holder]
        if not mine or any(slot.use is not Use.BUSY or slot.is_abandoned for slot in mine):
            return False
        if len(mine) >= self._slots_per_rank:
            return True
        idle_bytes = sum(slot.size_bytes for slot in self._slots if slot.use is Use.IDLE)
        need_bytes = self._used_bytes - idle_bytes + mine[-1].size_bytes
        return need_bytes > self._budget_bytes

    def has_its_share(self, holder: Holder) -> bool:
        """Say whether the holder has as many slots as it may have."""
        staying = [slot for slot in self._slots if slot.use is not Use.GOING]
        return sum(slot.holder is holder for slot in staying) >= self._slots_per_rank

    def release(self, slot: Slot, content: Content | None = None) -> None:
        """Take a slot back; what was sealed in it is void, or *content*, which may be read yet.

        One that a client has cut, or made longer, is nobody's any more.
        """
        if not slot.memory.is_whole:
            logger.error(
                "a process has changed the length of %s: it is given back", slot.memory.path
            )
            slot.memory.unseal()
            self._give_back([slot])
            return
        if content is None:
            slot.memory.unseal()
        else:
            slot.memory.keep()
        slot.use, slot.purpose, slot.content = Use.IDLE, "", content
        self._touch(slot)
        self._give_back_useless()
        self._tell()

    def abandon(self, slot: Slot) -> None:
        """Take a slot back as soon as its holder is known to write no more: see `settle`.

        Memory given back under a writer's hands would come again, and nobody would count it. If
        this daemon dies first, the next one takes it for lost, and waits as well.
        """
        slot.is_abandoned = True

    def holding(self, attempt_id: str) -> list[Slot]:
        """Return the slots in which images of a committed attempt still lie."""
        idle = (slot for slot in self._slots if slot.use is Use.IDLE)
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
            self._give_back_useless()
            self._tell()

    def void(self, held: Sequence[Slot]) -> None:
        """Have nobody read any more what is *held*."""
        for slot in held:
            slot.content = None
            slot.memory.unseal()
        self._give_back_useless()

    def settle(self, holder: Holder) -> None:
        """Note that the holder writes nothing now into slots of attempts that are over."""
        for slot in [slot for slot in self._slots if slot.holder is holder and slot.is_abandoned]:
            slot.is_abandoned = False
            self.release(slot)
        self._give_back(slot for slot, lost in self._lost.items() if holder.has(lost.taken))

    def settle_lost(self, attempt: str, rank: int, uid: int) -> None:
        """Note that a rank writes nothing more for *attempt*, which an earlier daemon may have had."""
        for slot, lost in self._lost.items():
            taken = lost.taken
            if (taken.attempt, taken.rank, taken.process.uid) == (attempt, rank, uid):
                self._give_back([slot])

    def forget(self, holder: Holder) -> None:
        """Give back what is kept for a rank that has gone, but what is committed: it may return."""
        holder.gone = True
        self._give_back_useless()
        self._tell()

    def _take(self, holder: Holder, size_bytes: int, purpose: str, attempt: str) -> Slot | None:
        size = grained(size_bytes)
        self._inherit(holder, size)
        free = [slot for slot in uses.fitting(self._slots, holder, size) if slot.is_free]
        if not free:
            return None
        slot = min(free, key=lambda slot: slot.touched)  # the newest content stays the longest
        slot.memory.take(holder.taken(attempt))  # before the first byte of something else is in it
        slot.use, slot.purpose, slot.content = Use.BUSY, purpose, None
        return slot

    def _inherit(self, holder: Holder, size: int) -> None:
        """Give *holder* what an earlier life of it has left: no page need be touched again."""
        mine = sum(slot.holder is holder and slot.use is not Use.GOING for slot in self._slots)
        left = uses.bequeathed(self._slots, holder, size)
        for slot in left[: max(0, self._slots_per_rank - mine)]:
            slot.holder = holder

    async def _wait_progress(self, holder: Holder, size_bytes: int) -> None:
        changed = self._changed
        coming = self._make_room(holder, grained(size_bytes))
        if coming is None:
            await changed.wait()
            return
        await coming.settled.wait()
        if coming.failure is not None:
            raise coming.failure

    def _make_room(self, holder: Holder, size: int) -> Slot | None:
        """Begin what brings a slot nearer; None if only others can, by finishing."""
        staying = [slot for slot in self._slots if slot.use is not Use.GOING]
        mine = [slot for slot in staying if slot.holder is holder]
        for slot in mine:
            if slot.use is Use.COMING and slot.size_bytes >= size:
                return slot
        fitting = uses.fitting(self._slots, holder, size)
        misfits = [slot for slot in mine if slot.is_free and slot not in fitting]
        if misfits:
            self._give_back(misfits)
        if len(mine) - len(misfits) >= self._slots_per_rank:
            return None
        staying_bytes = sum(slot.size_bytes for slot in staying if slot not in misfits)
        if staying_bytes + size > self._budget_bytes:
            if (left := uses.ownerless(self._slots, holder, size)) is not None:
                left.holder = holder
                return left
            need_bytes = staying_bytes + size - self._budget_bytes
            self._give_back(uses.evictable(self._slots, need_bytes))
        if self._used_bytes + size > self._budget_bytes:
            return None
        slot = Slot(holder, size)
        self._slots.append(slot)
        self._tasks.start_soon(self._create, slot)
        return slot

    def _adopt(self, memory: SlotFile, header: Header) -> Slot:
        attempt = header.attempt
        holder = Holder.of(header.rank, attempt.job.place, attempt.job.uid, gone=True)
        slot = Slot(holder, memory.size_bytes, Use.BUSY, memory)
        if header.is_kept:
            slot.use = Use.IDLE
            slot.content = Content(attempt.id, attempt.job.uid, header.laid)
        slot.settled.set()
        self._touch(slot)
        self._slots.append(slot)
        return slot

    def _leave(self, lost: LostSlot) -> None:
        """Count a slot that somebody may still be writing into, until he does not."""
        taken = lost.taken
        name = f"rank {taken.rank} (pid {taken.process.pid}) of a save that a restart has ended"
        holder = Holder(name, taken.process.uid, gone=True)
        slot = Slot(holder, lost.size_bytes, Use.BUSY, lost, purpose=name)
        slot.settled.set()
        self._slots.append(slot)

    @property
    def _lost(self) -> dict[Slot, LostSlot]:
        return {slot: slot.lost for slot in self._slots if slot.lost is not None}

    def _touch(self, slot: Slot) -> None:
        self._clock += 1
        slot.touched = self._clock

    async def _create(self, slot: Slot) -> None:
        try:
            slot.file = await anyio.to_thread.run_sync(
                partial(
                    _create_within_room,
                    *(self._directory, slot.size_bytes),
                    is_mapped=slot.holder.uid == os.geteuid(),
                )
            )
            slot.use = Use.IDLE
        except errors.CkptdError as failure:
            slot.failure = failure
            self._slots.remove(slot)
        slot.settled.set()
        self._give_back_useless()
        self._tell()

    def _give_back_useless(self) -> None:
        self._give_back(uses.useless(self._slots))

    async def _yield_memory(self, *, task_status: TaskStatus[anyio.CancelScope]) -> None:
        """Give back what nobody holds when the node runs short: everything is in files as well."""
        with anyio.CancelScope() as scope:
            task_status.started(scope)
            while True:
                while not (left := [slot for slot in self._slots if slot.is_left]):
                    await self._changed.wait()
                if await anyio.to_thread.run_sync(is_scarce):
                    logger.info("giving %d slots back, as memory is scarce", len(left))
                    self._give_back(slot for slot in left if slot.is_left)
                await anyio.sleep(_LOOK_S)

    async def _watch_lost(self, *, task_status: TaskStatus[anyio.CancelScope]) -> None:
        """Give back what an earlier daemon left to processes that end without a word."""
        with anyio.CancelScope() as scope:
            task_status.started(scope)
            while lost := self._lost:
                over = await anyio.to_thread.run_sync(_over, lost)
                self._give_back(slot for slot in over if slot.lost is not None)
                await anyio.sleep(_LOOK_S)

    def _give_back(self, idle: Iterable[Slot]) -> None:
        for slot in idle:
            slot.use = Use.GOING
            self._tasks.start_soon(self._destroy, slot)

    async def _destroy(self, slot: Slot) -> None:
        assert slot.file is not None
        await anyio.to_thread.run_sync(slot.file.destroy)
        self._slots.remove(slot)
        self._tell()

    async def _close(self) -> None:
        for slot in self._slots:
            if slot.use is Use.IDLE:
                await anyio.to_thread.run_sync(slot.memory.destroy)
            elif slot.use is Use.BUSY:
                assert slot.file is not None
                slot.file.close()
        await anyio.to_thread.run_sync(_remove_if_empty, self._directory)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def _directory(config: Config) -> Path:
    key = hashlib.sha256(os.fsencode(config.state_dir)).hexdigest()[:16]
    return config.arena_dir / f"ckptd-{os.geteuid()}-{key}"


def _half(left: Sequence[tuple[SlotFile, Header]], lost: Sequence[LostSlot], room: int) -> int:
    """Return half of what would be free without what can be given back, and what cannot."""
    kept_bytes = sum(memory.size_bytes for memory, header in left if header.is_kept)
    sealed_bytes = sum(memory.size_bytes for memory, header in left if not header.is_kept)
    lost_bytes = sum(one.size_bytes for one in lost)
    return sealed_bytes + lost_bytes + (room + kept_bytes) // 2


def _take_over(
    directory: Path, believes_slots: bool
) -> tuple[list[tuple[SlotFile, Header]], list[LostSlot], int]:
    """Return what is sealed, what is still written into, and the room beside."""
    slots.own_directory(directory)
    pages.advise(directory.parent)
    found = list(survivors(directory, believes_slots=believes_slots))
    lost = [one for one in found if isinstance(one, LostSlot)]
    left = [one for one in found if not isinstance(one, LostSlot)]
    return left, lost, room_bytes(directory)


def _over(lost: Mapping[Slot, LostSlot]) -> list[Slot]:
    return [slot for slot, one in lost.items() if one.is_over]


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):  # what is sealed stays for the next start, and nothing else matters
        directory.rmdir()


def _create_within_room(directory: Path, size_bytes: int, *, is_mapped: bool) -> SlotFile:
    """Create a slot unless the node lacks the memory now, whatever the budget says."""
    room = room_bytes(directory)
    if size_bytes > room:
        text = (
            f"staging needs {size_bytes} bytes and {directory.parent} or the memory has {room} "
            f"free; free some, or enlarge it"
        )
        raise errors.ResourceExhausted(text, need_bytes=size_bytes, free_bytes=room)
    return slots.create(directory, size_bytes, is_mapped=is_mapped)
