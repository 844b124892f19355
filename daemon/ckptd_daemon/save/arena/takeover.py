"""What a daemon finds in its arena when it starts, and how much memory it may have then."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ckptd_daemon.config import Config
from ckptd_daemon.save.arena import pages, slots
from ckptd_daemon.save.arena.budget import room_bytes
from ckptd_daemon.save.arena.headers import Header
from ckptd_daemon.save.arena.slots import SlotFile
from ckptd_daemon.save.arena.survivors import LostSlot, survivors


@dataclass(frozen=True, slots=True)
class Left:
    """What an earlier daemon left."""

    directory: Path
    sealed: tuple[tuple[SlotFile, Header], ...]
    """By ranks that were done; some of it is committed."""
    lost: tuple[LostSlot, ...]
    """Still written into, as far as anybody knows."""
    room_bytes: int
    """Free beside all of it."""

    @property
    def half_bytes(self) -> int:
        """Half of what would be free without what can be given back, and what cannot."""
        kept_bytes = sum(memory.size_bytes for memory, header in self.sealed if header.is_kept)
        staged_bytes = sum(m.size_bytes for m, header in self.sealed if not header.is_kept)
        lost_bytes = sum(one.size_bytes for one in self.lost)
        return staged_bytes + lost_bytes + (self.room_bytes + kept_bytes) // 2


def take_over(config: Config) -> Left:
    """Make the directory of slots ours, and return what is in it."""
    directory = _directory(config)
    slots.own_directory(directory)
    pages.advise(directory.parent)
    believes_slots, trusts_own = not config.save_roots, not config.allow_uids
    found = list(survivors(directory, believes_slots=believes_slots, trusts_own=trusts_own))
    lost = tuple(one for one in found if isinstance(one, LostSlot))
    sealed = tuple(one for one in found if not isinstance(one, LostSlot))
    return Left(directory, sealed, lost, room_bytes(directory))


def _directory(config: Config) -> Path:
    key = hashlib.sha256(os.fsencode(config.state_dir)).hexdigest()[:16]
    return config.arena_dir / f"ckptd-{os.geteuid()}-{key}"
