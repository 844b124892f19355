"""What nodes have staged for an earlier life of a run, when the next begins, perhaps on others.

Its daemons may be known to nobody here, and cannot be asked: it is theirs to finish as long as
something of it moves in the directory that all share.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import anyio

from ckptd_daemon.save.attempts import JobKey
from ckptd_daemon.save.commit import commit, fences
from ckptd_daemon.save.commit.removal import GONE
from ckptd_daemon.save.members import is_attempt_of
from ckptd_daemon.save.nodes.ground import is_going
from ckptd_daemon.save.nodes.protocol import NOTE
from ckptd_daemon.save.nodes.receipts import encode_note
from ckptd_daemon.save.places import Place, in_thread
from ckptd_daemon.store import durable

_POLL_S: Final = 0.1
_POLL_MAX_S: Final = 2.0
_LOST_MAX: Final = 1024

Traces = frozenset[tuple[str, int, int]]
"""Name, length and time of change of each file."""


class Elsewhere:
    """Waits for what others have in hand; not again for what had stood still."""

    def __init__(self, still_s: float) -> None:
        """What has not moved for *still_s*, by this clock, has lost its nodes."""
        self._still_s = still_s
        self._lost: deque[str] = deque(maxlen=_LOST_MAX)

    async def wait_ended(self, place: Place, incarnation: str) -> None:
        """Return when what other lives than *incarnation* have there now has ended, or is lost.

        What begins meanwhile is not waited for.
        """
        going = await in_thread(_of_others, place, incarnation, may_leave=True) - set(self._lost)
        traces, moved_at, pause = None, time.monotonic(), _POLL_S
        while going:
            if (seen := await in_thread(_traces, place, may_leave=True)) != traces:
                traces, moved_at = seen, time.monotonic()
            elif time.monotonic() - moved_at >= self._still_s:
                self._lost.extend(going)
                return
            await anyio.sleep(pause)
            pause = min(2 * pause, _POLL_MAX_S)
            going = await in_thread(_still_going, place, going, may_leave=True)


def end_earlier(key: JobKey, in_hand: Collection[str], earlier: Sequence[str]) -> None:
    """End what *earlier* lives of the run have in hand, and tell their daemons why.

    Not all that is not of *key*: a later life may have begun.
    """
    place = key.place
    for path in _left(place):
        attempt_id = path.name.partition(".")[0]  # also of what another daemon is about to name so
        life = next((one for one in earlier if is_attempt_of(one, attempt_id)), None)
        if life is None or attempt_id in in_hand or path.suffix in {NOTE, GONE}:
            continue
        if path.name == attempt_id:
            why = fences.fenced(place, life, key.incarnation)
            note = path.with_name(f"{attempt_id}{NOTE}")
            durable.write_first(note, encode_note(attempt_id, life, why))
        commit.remove(path, place)


def _left(place: Place) -> list[Path]:
    try:
        return list(place.attempts.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _of_others(place: Place, incarnation: str) -> set[str]:
    names = {path.name for path in _left(place) if "." not in path.name}
    return _still_going(place, {name for name in names if not is_attempt_of(incarnation, name)})


def _still_going(place: Place, attempts: Collection[str]) -> set[str]:
    return {attempt for attempt in attempts if is_going(place, attempt)}


def _traces(place: Place) -> Traces:
    """Return what changes while somebody works on an attempt, or on one before it."""
    found: set[tuple[str, int, int]] = set()
    for directory, _, names in os.walk(place.attempts):
        for name in names:
            if (trace := _trace(Path(directory, name))) is not None:
                found.add(trace)
    return frozenset(found)


def _trace(file: Path) -> tuple[str, int, int] | None:
    try:
        stat = file.stat(follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None  # it was renamed meanwhile
    return str(file), stat.st_size, stat.st_mtime_ns
