"""What is done when time is short: hear of it, have the newest steps saved first, say what was."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from ckptd_daemon.config import Config
from ckptd_daemon.save import notices
from ckptd_daemon.save.finisher import Finisher
from ckptd_daemon.save.notices import Notice
from ckptd_daemon.save.preemption import (
    Fate,
    Fated,
    Preemption,
    PreemptionStatistics,
    fates,
    sentences,
)
from ckptd_daemon.save.track import Track
from ckptd_daemon.save.tracks import Tracks

logger = logging.getLogger(__name__)

STOPPED: Final = "the daemon was stopped"


class Preempting:
    """Knows whether the daemon, or its node, is about to go away."""

    def __init__(
        self, config: Config, tracks: Tracks, finisher: Finisher, tasks: TaskGroup
    ) -> None:
        self._path = config.preemption_notice
        self._poll_s = config.preemption_poll_s
        self._drain_s = config.drain_s
        self._tracks = tracks
        self._finisher = finisher
        self._tasks = tasks
        self._notice: Notice | None = None
        self._trouble = ""
        self._preemption: Preemption | None = None
        self._logged: tuple[Fated, ...] = ()
        self._telling = anyio.CancelScope()

    @property
    def notice(self) -> tuple[str, float] | None:
        """Why the node goes away and in how many seconds; None while nobody says so."""
        if self._notice is None:
            return None
        return f"notice in {self._path}", max(0.0, self._notice.deadline - time.time())

    def statistics(self) -> PreemptionStatistics | None:
        """Return how far saving is, if time is short."""
        found = self._preemption
        if found is None:
            return None
        left_s = max(0.0, found.ends_at - time.monotonic())
        return PreemptionStatistics(found.cause, left_s, found.takes_node, self._fates())

    async def heed(self) -> None:
        """Look for a notice, and whether it still stands, for ever."""
        if (path := self._path) is None:
            return
        while True:
            notice = await to_thread.run_sync(self._read, path)
            if notice != self._notice:
                self._notice = notice
                self._take_notice(path)
            await anyio.sleep(self._poll_s)

    def stop(self) -> None:
        """Save what can be saved before the daemon ends."""
        now = time.monotonic()
        began_at = now if self._preemption is None else self._preemption.began_at
        takes_node = self._notice is not None
        self._begin(Preemption(STOPPED, began_at, now + self._drain_s, takes_node))

    def say_what_became(self) -> None:
        """Log what was saved and what was not, and tell it to those who follow what was not."""
        self._telling.cancel()
        self._log(self._fates())
        for track in self._tracks:
            (one,) = fates(_SINCE_EVER, [track])
            if one.fate in {Fate.STAGED, Fate.DELIVERED}:
                track.remark(f"{STOPPED} before step {one.step} was committed: {one.why}")

    def _take_notice(self, path: Path) -> None:
        if self._preemption is not None and self._preemption.cause == STOPPED:
            return  # it ends before that
        if (found := self.notice) is None:
            logger.warning("the notice in %s is withdrawn: saving is as ever", path)
            self._preemption = None
            self._telling.cancel()
            self._finisher.hurry(None)
            for track in self._tracks:
                track.remark("")
            return
        cause, left_s = found
        text = f"this node goes away in {left_s:.0f} s ({cause})"
        logger.warning("%s: the newest step of each run is saved first", text)
        now = time.monotonic()
        began_at = now if self._preemption is None else self._preemption.began_at
        self._begin(Preemption(cause, began_at, now + left_s, takes_node=True))
        for track in self._tracks:
            track.remark(text)

    def _begin(self, preemption: Preemption) -> None:
        self._preemption = preemption
        self._finisher.hurry(preemption)
        self._telling.cancel()
        self._tasks.start_soon(self._tell, preemption)

    async def _tell(self, preemption: Preemption) -> None:
        """Log what became of the attempts, whenever all have ended and when the time is over."""
        with anyio.CancelScope() as self._telling:
            while True:
                left_s = preemption.ends_at - time.monotonic()
                with anyio.move_on_after(left_s if left_s > 0 else math.inf):
                    await self._tracks.wait_none()
                self._log(self._fates())
                if len(self._tracks) == 0:
                    await self._tracks.wait_some()

    def _log(self, found: tuple[Fated, ...]) -> None:
        if found != self._logged:
            self._logged = found
            for sentence in sentences(found):
                logger.warning("saved in time, or not: %s", sentence)

    def _fates(self) -> tuple[Fated, ...]:
        if self._preemption is None:
            return ()
        tracks: list[Track] = [*self._tracks.ended, *self._tracks]
        return fates(self._preemption, tracks)

    def _read(self, path: Path) -> Notice | None:
        """Return what is there; what cannot be read is logged once, and changes nothing."""
        try:
            found = notices.read(path, soon_s=self._drain_s, now=time.time())
        except OSError as error:
            if str(error) != self._trouble:
                logger.warning("cannot read the notice of preemption: %s", error)
            self._trouble = str(error)
            return self._notice
        self._trouble = ""
        return found


_SINCE_EVER: Final = Preemption(STOPPED, 0.0, 0.0, takes_node=False)
