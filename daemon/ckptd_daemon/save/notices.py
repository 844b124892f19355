"""The file in which a node agent says that the node is about to go away, and when.

It holds nothing, or how many seconds are left since it was written, or a moment: in seconds
since the epoch, or by RFC 3339. Removed, it was a false alarm.
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

_BYTES_MAX: Final = 256
_EPOCH_S_MIN: Final = 1e8  # a smaller number can only be the seconds that are left
_EPOCH_S_MAX: Final = 1e11  # a larger one counts milliseconds, or nothing
OVER_S: Final = 600.0
"""A node that lives on so long after its deadline was not meant, or has come back."""


@dataclass(frozen=True, slots=True)
class Notice:
    """The node goes away."""

    deadline: float
    """Seconds since the epoch."""


def read(path: Path, *, soon_s: float, now: float) -> Notice | None:
    """Return what the file says; None if there is none, or if what it says is long over.

    One that says nothing, or that nobody understands, means *soon_s* since it was written.
    Raises `OSError` if the file is there and cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = os.fstat(fd)
        data = os.read(fd, _BYTES_MAX) if stat.S_ISREG(found.st_mode) else b""
    finally:
        os.close(fd)
    text = data.decode(errors="replace").strip()
    soon = found.st_mtime + soon_s
    deadline = moment(text, written_at=found.st_mtime) if text else soon
    if deadline is None:
        logger.warning("%s says %r, which is no time; it is taken for soon", path, text)
        deadline = soon
    return Notice(deadline) if deadline > now - OVER_S else None


def moment(text: str, *, written_at: float) -> float | None:
    """Return what *text* means in seconds since the epoch; None if it is no time. Pure."""
    try:
        number = float(text)
    except ValueError:
        return _by_rfc_3339(text)
    if not 0 <= number < _EPOCH_S_MAX:
        return None
    return number if number >= _EPOCH_S_MIN else written_at + number


def _by_rfc_3339(text: str) -> float | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
