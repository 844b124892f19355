"""The arena: every slot of shared memory, what it is used for, and how it comes and goes."""

from __future__ import annotations

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
from ckptd_daemon.save.arena import slots, uses
from ckptd_daemon.save.arena.budget import check_room, is_scarce
from ckptd_daemon.save.arena.headers import Header
from ckptd_daemon.save.arena.slots import SlotFile
from ckptd_daemon.save.arena.survivors import LostSlot
from ckptd_daemon.save.arena.takeover import Left, take_over
from ckptd_daemon.save.arena.uses import Content, Holder, Slot, Use
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
    """Every slot whose memory counts; it alone changes what one is used for, and for whom."""

    def __init__(
        self, directory: Path, budget_bytes: int, tasks: TaskGroup, *, trusts_own: bool
    ) -> None:
        """If it *trusts_own*, slots of the daemon's own user are mapped."""
        self._trusts_own = trusts_own
        self.directory = directory
        self.budget_bytes = budget_bytes
        self._is_closed = False
        self._tasks = tasks  # creates and destroys slots, whoever stops waiting
        self._slots: list[Slot] = []
        self._clock = 0  # orders idle slots by last use
        self.changed = anyio.Event()
        """Replaced at every change."""

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Config) -> AsyncIterator[tuple[Self, list[tuple[Slot, Header]]]]:
        """Give an arena, and the slots with unfinished saves that an earlier daemon left in it.

        At the end idle slots are given back; sealed ones stay for the next start.
        """
        left = await anyio.to_thread.run_sync(take_over, config)
        async with anyio.create_task_group() as tasks:
            budget = config.arena_bytes or left.half_bytes
            arena = cls(left.directory, budget, tasks, trusts_own=not config.allow_uids)
            unfinished = arena._count(left)
            watches = [
                await tasks.start(arena._yield_memory),
                await tasks.start(arena._watch_lost),
            ]
            try:
                yield arena, unfinished
            finally:
                for watch in watches:
                    watch.cancel()
                with anyio.CancelScope(shield=True):
                    await arena._close()

    def __repr__(self) -> str:
        figures = self.statistics()
        return f"<Arena [{figures.slots} slots, {figures.used_bytes}/{figures.budget_bytes} bytes]>"

    def __iter__(self) -> Iterator[Slot]:
        return iter(list(self._slots))

    def statistics(self) -> ArenaStatistics:
        """Return counts and bytes as they are now."""
        idle = sum(slot.use is Use.IDLE for slot in self._slots)
        return ArenaStatistics(self.used_bytes, self.budget_bytes, len(self._slots), idle)

    @property
    def used_bytes(self) -> int:
        """What all slots take, those that come and go included."""
        return sum(slot.size_bytes for slot in self._slots)

    def create(self, holder: Holder, size_bytes: int) -> Slot:
        """Return a slot that begins to come; it counts from now on."""
        slot = Slot(holder, size_bytes)
        self._slots.append(slot)
        self._tasks.start_soon(self._come, slot)
        return slot

    def pass_on(self, slot: Slot, holder: Holder) -> None:
        """Keep an idle slot for *holder* from now on."""
        slot.holder = holder

    def take(self, slot: Slot, purpose: str, attempt: str) -> None:
        """Have an idle slot be busy: its holder gets it for *attempt*."""
        taken = slot.holder.taken(attempt)
        slot.memory.take(taken)  # before the first byte of something else is in it
        slot.use, slot.purpose, slot.content = Use.BUSY, purpose, None

    def release(self, slot: Slot, content: Content | None = None) -> None:
        """Take a slot back; what was sealed in it is void, or *content*, which may be read yet.

        One that a client has cut, or made longer, is nobody's any more.
        """
        if not slot.memory.is_whole:
            logger.error(
                "a process has changed the length of %s: it is given back", slot.memory.path
            )
            slot.memory.unseal()
            self.give_back([slot])
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
        self.give_back(slot for slot, lost in self._lost.items() if holder.has(lost.taken))

    def settle_lost(self, attempt: str, rank: int, uid: int) -> None:
        """Note that a rank writes nothing more for *attempt*, which an earlier daemon may have had."""
        for slot, lost in self._lost.items():
            taken = lost.taken
            if (taken.attempt, taken.rank, taken.process.uid) == (attempt, rank, uid):
                self.give_back([slot])

    def forget(self, holder: Holder) -> None:
        """Give back what is kept for a rank that has gone, but what is committed: it may return."""
        holder.gone = True
        self._give_back_useless()
        self._tell()

    def give_back(self, idle: Iterable[Slot]) -> None:
        """Begin to give the memory of *idle* slots back."""
        for slot in idle:
            slot.use = Use.GOING
            self._tasks.start_soon(self._destroy, slot)

    def _count(self, left: Left) -> list[tuple[Slot, Header]]:
        """Count what is left of an earlier daemon, within the budget; return what is unfinished."""
        adopted = [(Slot.of_sealed(memory, header), header) for memory, header in left.sealed]
        for slot, _ in adopted:
            self._touch(slot)
            self._slots.append(slot)
        self._slots += map(Slot.of_lost, left.lost)
        self.give_back(uses.surplus(self._slots, self.used_bytes - self.budget_bytes))
        return [one for one in adopted if one[0].use is Use.BUSY]

    @property
    def _lost(self) -> dict[Slot, LostSlot]:
        return {slot: slot.lost for slot in self._slots if slot.lost is not None}

    def _touch(self, slot: Slot) -> None:
        self._clock += 1
        slot.touched = self._clock

    async def _come(self, slot: Slot) -> None:
        try:
            slot.file = await anyio.to_thread.run_sync(
                partial(
                    _create,
                    *(self.directory, slot.size_bytes),
                    is_mapped=self._trusts_own and slot.holder.uid == os.geteuid(),
                )
            )
            slot.use = Use.IDLE
        except errors.CkptdError as failure:
            slot.failure = failure
            self._slots.remove(slot)
        slot.settled.set()
        if self._is_closed:
            with anyio.CancelScope(shield=True):
                await self._discard()
            return
        self._give_back_useless()
        self._tell()

    def _give_back_useless(self) -> None:
        self.give_back(uses.useless(self._slots))

    async def _yield_memory(self, *, task_status: TaskStatus[anyio.CancelScope]) -> None:
        """Give back what nobody holds when the node runs short: everything is in files as well."""
        with anyio.CancelScope() as scope:
            task_status.started(scope)
            while True:
                while not (left := [slot for slot in self._slots if slot.is_left]):
                    await self.changed.wait()
                if await anyio.to_thread.run_sync(is_scarce):
                    logger.info("giving %d slots back, as memory is scarce", len(left))
                    self.give_back(slot for slot in left if slot.is_left)
                await anyio.sleep(_LOOK_S)

    async def _watch_lost(self, *, task_status: TaskStatus[anyio.CancelScope]) -> None:
        """Give back what an earlier daemon left to processes that end without a word."""
        with anyio.CancelScope() as scope:
            task_status.started(scope)
            while lost := self._lost:
                over = await anyio.to_thread.run_sync(_over, lost)
                self.give_back(slot for slot in over if slot.lost is not None)
                await anyio.sleep(_LOOK_S)

    async def _destroy(self, slot: Slot) -> None:
        assert slot.file is not None
        await anyio.to_thread.run_sync(slot.file.destroy)
        self._slots.remove(slot)
        self._tell()

    async def _close(self) -> None:
        self._is_closed = True
        for slot in self:
            if slot.use is Use.BUSY:
                assert slot.file is not None
                slot.file.close()
        await self._discard()

    async def _discard(self) -> None:
        """Give idle slots back, each once, and the directory if nothing else is in it."""
        while idle := next((slot for slot in self if slot.use is Use.IDLE), None):
            idle.use = Use.GOING
            await anyio.to_thread.run_sync(idle.memory.destroy)
        await anyio.to_thread.run_sync(_remove_if_empty, self.directory)

    def _tell(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()


def _over(lost: Mapping[Slot, LostSlot]) -> list[Slot]:
    return [slot for slot, one in lost.items() if one.is_over]


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):  # what is sealed stays for the next start, and nothing else matters
        directory.rmdir()


def _create(directory: Path, size_bytes: int, *, is_mapped: bool) -> SlotFile:
    """Create a slot unless the node lacks the memory now, whatever the budget says."""
    slots.own_directory(directory)  # somebody may have removed it
    check_room(directory, size_bytes)
    try:
        return slots.create(directory, size_bytes, is_mapped=is_mapped)
    except FileNotFoundError as error:
        raise errors.Unavailable(f"somebody has removed {directory}; save again") from error
