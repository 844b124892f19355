"""What is committed and still lies in shared memory: ranks that load read it there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import anyio

from ckptd_daemon.save.arena.arena import Arena
from ckptd_daemon.save.arena.headers import Laid
from ckptd_daemon.save.arena.offers import Offers, SlotOffer
from ckptd_daemon.save.arena.uses import Slot
from ckptd_daemon.sessions import Session

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lent:
    """A slot to read, and where in it images lie."""

    slot: SlotOffer
    laid: tuple[Laid, ...]


class Lending:
    """Lends what the arena still holds of committed attempts."""

    def __init__(self, arena: Arena, offers: Offers) -> None:
        self._arena = arena
        self._offers = offers
        self._ended = anyio.Event()

    @contextmanager
    def lend(self, attempt_id: str, session: Session) -> Iterator[list[Lent]]:
        """Give what lies here of an attempt; while inside it stays there.

        Only the user that saved it gets it, and root.
        """
        uid = session.process.uid
        held = [
            slot
            for slot in self._arena.holding(attempt_id)
            if slot.content is not None and uid in (0, slot.content.uid)
        ]
        with self._arena.lend(held):
            yield [self._lent(slot, session) for slot in held]

    async def wait_ended(self) -> None:
        """Wait until the daemon wants its memory back, to stop."""
        await self._ended.wait()

    def end(self) -> None:
        """Have all readers go: what they lack they read from files."""
        self._ended.set()

    def quarantine(self, attempt_id: str, image: str, reason: str, session: Session) -> bool:
        """Lend an image that is not what was saved no more; say whether it was lent."""
        pid = session.process.pid
        slots = [
            slot
            for slot in self._arena.holding(attempt_id)
            if slot.content is not None
            and session.process.uid in (0, slot.content.uid)
            and image in {laid.image.name for laid in slot.content.laid}
        ]
        self._arena.void(slots)
        text = "pid %d found %s of attempt %s corrupt in memory: %s; it is read from files now"
        logger.error(text, pid, image, attempt_id, reason)
        return bool(slots)

    def _lent(self, slot: Slot, session: Session) -> Lent:
        assert slot.content is not None
        return Lent(self._offers.to_read(slot, session), slot.content.laid)
