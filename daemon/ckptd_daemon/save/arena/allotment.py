"""Who gets which slot of the arena, who waits for one, and who gives way."""

from __future__ import annotations

import anyio

from ckptd_daemon.save.arena import uses
from ckptd_daemon.save.arena.arena import Arena
from ckptd_daemon.save.arena.uses import Holder, Slot, Use, grained
from ckptd_proto import errors


class Allotment:
    """Slots within the arena's budget; full means wait, too large means no."""

    def __init__(self, arena: Arena, slots_per_rank: int) -> None:
        self._arena = arena
        self._slots_per_rank = slots_per_rank

    def check_fits(self, size_bytes: int, *, beside_bytes: int = 0) -> None:
        """Raise `ResourceExhausted` if so much can never be held, *beside_bytes* being in use."""
        need = grained(size_bytes) + beside_bytes
        if need > self._arena.budget_bytes:
            beside = f" beside {beside_bytes} of the same save" if beside_bytes else ""
            text = (
                f"staging needs {grained(size_bytes)} bytes{beside} and the arena in "
                f"{self._arena.directory.parent} may hold {self._arena.budget_bytes}: "
                f"raise `arena_bytes` or the size of that filesystem"
            )
            free = max(0, self._arena.budget_bytes - beside_bytes)
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
            raise self._late(size_bytes, timeout_s) from None
        return slot

    async def prepare(self, holder: Holder, size_bytes: int) -> list[Slot]:
        """Return the holder's slots once they are as many and as large as the budget allows."""
        self.check_fits(size_bytes)
        size = grained(size_bytes)
        self._inherit(holder, size)
        while len(uses.fitting(self._arena, holder, size)) < self._slots_per_rank:
            if (coming := self._make_room(holder, size)) is None:
                break
            await coming.settled.wait()
            if coming.failure is not None and not uses.fitting(self._arena, holder, size):
                raise coming.failure
            if coming.failure is not None:
                break
        return [slot for slot in uses.fitting(self._arena, holder, size) if slot.use is Use.IDLE]

    def is_full(self, holder: Holder) -> bool:
        """Say whether the holder's next slot is one that others have to give back first."""
        mine = [slot for slot in self._arena if slot.holder is holder]
        if not mine or any(slot.use is not Use.BUSY or slot.is_abandoned for slot in mine):
            return False
        if len(mine) >= self._slots_per_rank:
            return True
        idle_bytes = sum(slot.size_bytes for slot in self._arena if slot.use is Use.IDLE)
        need_bytes = self._arena.used_bytes - idle_bytes + mine[-1].size_bytes
        return need_bytes > self._arena.budget_bytes

    def has_its_share(self, holder: Holder) -> bool:
        """Say whether the holder has as many slots as it may have."""
        staying = [slot for slot in self._arena if slot.use is not Use.GOING]
        return sum(slot.holder is holder for slot in staying) >= self._slots_per_rank

    def _take(self, holder: Holder, size_bytes: int, purpose: str, attempt: str) -> Slot | None:
        size = grained(size_bytes)
        self._inherit(holder, size)
        free = [slot for slot in uses.fitting(self._arena, holder, size) if slot.is_free]
        if not free:
            return None
        slot = min(free, key=lambda slot: slot.touched)  # the newest content stays the longest
        self._arena.take(slot, purpose, attempt)
        return slot

    def _inherit(self, holder: Holder, size: int) -> None:
        """Give *holder* what an earlier life of it has left: no page need be touched again."""
        mine = sum(slot.holder is holder and slot.use is not Use.GOING for slot in self._arena)
        left = uses.bequeathed(self._arena, holder, size)
        for slot in left[: max(0, self._slots_per_rank - mine)]:
            self._arena.pass_on(slot, holder)

    async def _wait_progress(self, holder: Holder, size_bytes: int) -> None:
        changed = self._arena.changed
        coming = self._make_room(holder, grained(size_bytes))
        if coming is None:
            await changed.wait()
            return
        await coming.settled.wait()
        if coming.failure is not None:
            raise coming.failure

    def _make_room(self, holder: Holder, size: int) -> Slot | None:
        """Begin what brings a slot nearer; None if only others can, by finishing."""
        staying = [slot for slot in self._arena if slot.use is not Use.GOING]
        mine = [slot for slot in staying if slot.holder is holder]
        for slot in mine:
            if slot.use is Use.COMING and slot.size_bytes >= size:
                return slot
        fitting = uses.fitting(self._arena, holder, size)
        misfits = [slot for slot in mine if slot.is_free and slot not in fitting]
        if misfits:
            self._arena.give_back(misfits)
        if len(mine) - len(misfits) >= self._slots_per_rank:
            return None
        staying_bytes = sum(slot.size_bytes for slot in staying if slot not in misfits)
        if staying_bytes + size > self._arena.budget_bytes:
            if (left := uses.ownerless(self._arena, holder, size)) is not None:
                self._arena.pass_on(left, holder)
                return left
            need_bytes = staying_bytes + size - self._arena.budget_bytes
            self._arena.give_back(uses.evictable(self._arena, need_bytes))
        if self._arena.used_bytes + size > self._arena.budget_bytes:
            return None
        return self._arena.create(holder, size)

    def _late(self, size_bytes: int, timeout_s: float) -> errors.DeadlineExceeded:
        arena = self._arena
        held = ", ".join(sorted({slot.purpose for slot in arena if slot.purpose}))
        text = f"no slot of {size_bytes} bytes came free in {timeout_s:g} s"
        return errors.DeadlineExceeded(
            f"{text}: {arena.used_bytes} of {arena.budget_bytes} bytes are held by "
            f"{held or 'idle slots'}; save less often, or raise `arena_bytes`"
        )
