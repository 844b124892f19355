"""Slots on their way to clients: the descriptor to collect, and whether it may be written."""

from __future__ import annotations

import os
from collections.abc import Callable, Container
from dataclasses import dataclass

from ckptd_daemon.save.arena.uses import Slot
from ckptd_daemon.sessions import Session


@dataclass(frozen=True, slots=True)
class SlotOffer:
    """A slot, and the token for its descriptor; no token if the caller has it mapped."""

    id: str
    size_bytes: int
    token: str


class Offers:
    """Has descriptors wait for the processes that may collect them."""

    def __init__(self, offer: Callable[[int, int], str]) -> None:
        """*offer* gives a token by which a process of a uid collects a copy of a descriptor."""
        self._offer = offer

    def to_write(self, slot: Slot, mapped: Container[str], session: Session) -> SlotOffer:
        """Offer a slot to copy into; *mapped* are those that the caller has already."""
        memory = slot.memory
        known = memory.id in mapped
        token = "" if known else self._offer(memory.fd, session.process.uid)
        return SlotOffer(memory.id, memory.size_bytes, token)

    def to_read(self, slot: Slot, session: Session) -> SlotOffer:
        """Offer a slot through a descriptor by which nobody can write."""
        memory = slot.memory
        # not by its name, which somebody may have removed
        fd = os.open(f"/proc/self/fd/{memory.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            token = self._offer(fd, session.process.uid)
        finally:
            os.close(fd)
        return SlotOffer(memory.id, memory.size_bytes, token)
