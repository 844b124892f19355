"""How much of the CPU writing takes: a share of its own, and what nobody else wants."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

WINDOW_S: Final = 0.1
"""Over which the idle time of the machine is looked at."""
BURST_S: Final = 0.2
"""For how long the share may be saved up."""
PAUSE_MAX_S: Final = 0.25
"""After which it is looked at again, whether others still want the CPU."""
_STAT: Final = Path("/proc/stat")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class Allowance:
    """A bucket of CPU seconds that fills by a share of all cores, and by what was idle of them.

    A nice value would not do: trainers mostly are in another control group, or session, and
    between those the kernel shares the CPU evenly, however nice somebody is within one.
    """

    def __init__(
        self,
        share: float,
        cores: int,
        *,
        idle_s: Callable[[], float],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """*idle_s* tells how long the cores have been idle so far, all together."""
        self._own_cores = share * cores
        self._idle_s = idle_s
        self._now_s = now_s
        self._left_s = self._own_cores * BURST_S
        self._filled_s = self._looked_s = now_s()
        self._was_idle_s = idle_s()
        self._idle_cores = 0.0

    def pause_s(self, used_s: float) -> float:
        """Take *used_s* of CPU time from the bucket; return how long to wait before the next."""
        now = self._now_s()
        if now - self._looked_s >= WINDOW_S:
            idle_s = self._idle_s()
            self._idle_cores = max(0.0, idle_s - self._was_idle_s) / (now - self._looked_s)
            self._looked_s, self._was_idle_s = now, idle_s
        cores = self._own_cores + self._idle_cores
        self._left_s += cores * (now - self._filled_s) - used_s
        self._left_s = max(-cores * PAUSE_MAX_S, min(self._left_s, cores * BURST_S))
        self._filled_s = now
        return max(0.0, -self._left_s / cores)


def idle_s() -> float:
    """Return how long all cores of the machine have been idle, or waited for a disk, so far."""
    idle, waiting = _STAT.read_text().split(maxsplit=6)[4:6]
    return (int(idle) + int(waiting)) / _TICKS_PER_S
