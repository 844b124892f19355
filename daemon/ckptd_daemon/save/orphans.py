"""What earlier lives have in hand, here or on other nodes: waited for before anything is told."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import anyio

from ckptd_daemon.config import Config
from ckptd_daemon.save import recovery
from ckptd_daemon.save.arena.headers import Header
from ckptd_daemon.save.arena.uses import Slot
from ckptd_daemon.save.errands import Errand, Errands
from ckptd_daemon.save.finisher import Finisher
from ckptd_daemon.save.jobs import Jobs
from ckptd_daemon.save.nodes.elsewhere import Elsewhere
from ckptd_daemon.save.places import Place
from ckptd_daemon.save.track import Track, is_staged
from ckptd_daemon.save.tracks import Tracks
from ckptd_daemon.sessions import Session


class Orphans:
    """Saves whose ranks have gone: of an earlier daemon, an earlier life of the job, or both."""

    def __init__(self, config: Config, jobs: Jobs, tracks: Tracks, errands: Errands) -> None:
        self._save_roots = config.save_roots
        self._lost_s = 2 * config.takeover_s  # that nodes may stand still, by this clock
        self._jobs = jobs
        self._tracks = tracks
        self._errands = errands
        self._left: dict[Place, Errand[None]] = {}  # runs with attempts of an earlier daemon
        self._elsewhere = Elsewhere(still_s=self._lost_s)

    async def take_up(self, left: Iterable[tuple[Slot, Header]], finisher: Finisher) -> None:
        """Begin to finish what an earlier daemon has *left* staged, each run by itself."""
        for place, found in recovery.by_place(left).items():
            for track in found:
                self._tracks.add(track)
            allowed = self._save_roots
            work = partial(recovery.take_up, place, found, self._tracks, finisher, allowed)
            what = "being taken up after the daemon's start"
            self._left[place] = await self._errands.begin(place, what, work)

    async def wait_ended(self, root: Path, experiment: str, run: str, session: Session) -> None:
        """Wait until what is staged below *root*, by lives that are past to the caller, has ended.

        Empty names mean every name. On other nodes, too, until the caller's life has saved.
        """
        await self.wait_taken_up(root, experiment, run)
        await self._wait_here(root, experiment, run, session)
        await self.wait_elsewhere(Place(root, experiment, run), session)

    async def wait_taken_up(self, root: Path, experiment: str, run: str) -> None:
        """Wait until it is known what became of what an earlier daemon left below *root*."""
        for place, errand in self._left.items():
            if place == Place(root, experiment or place.experiment, run or place.run):
                await errand.done.wait()

    async def wait_elsewhere(self, place: Place, session: Session) -> None:
        """Wait for what nodes have in hand of an earlier life, until the caller's has saved."""
        if (own := self._jobs.has_yet_to_save(place, session)) is not None:
            await self._elsewhere.wait_ended(place, own.incarnation)

    async def _wait_here(self, root: Path, experiment: str, run: str, session: Session) -> None:
        """Wait until what is staged now in this daemon, by jobs that are past, has ended.

        Not for ever for what spans several daemons, as the node of another may be lost, nor for
        what waits for its place.
        """

        def is_orphan(track: Track) -> bool:
            job = track.attempt.job
            below = Place(root, experiment or job.place.experiment, run or job.place.run)
            return job.place == below and is_staged(track) and self._jobs.is_past(job, session)

        for track in filter(is_orphan, self._tracks):
            ends_at = time.monotonic() + self._lost_s
            while not track.attempt.state.is_final:
                is_sure = track.attempt.members is None and track.trouble is None
                if not is_sure and time.monotonic() >= ends_at:
                    break
                with anyio.move_on_after(math.inf if is_sure else ends_at - time.monotonic()):
                    await track.changed.wait()
