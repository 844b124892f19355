"""Whether the memory of the arena is of huge pages: copies, restores and direct I/O like those."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from ckptd_daemon import mounts

logger = logging.getLogger(__name__)

_HUGE: Final = frozenset({"huge=always", "huge=within_size"})


def advise(arena_dir: Path) -> None:
    """Log how the arena would be faster, if it could be."""
    mount = mounts.mount(arena_dir)
    if mount.kind == "tmpfs" and not _HUGE & mount.options:
        text = "%s is of small pages: `mount -o remount,huge=within_size %s` makes saves and loads faster"
        logger.info(text, arena_dir, mount.point)
