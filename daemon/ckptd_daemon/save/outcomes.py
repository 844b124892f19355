"""What became of saves: told to those who follow one, and to those who ask what there is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from ckptd_daemon.config import Config
from ckptd_daemon.save import places, recovery
from ckptd_daemon.save.attempts import Checkpoint
from ckptd_daemon.save.commit import manifests
from ckptd_daemon.save.orphans import Orphans
from ckptd_daemon.save.places import Place
from ckptd_daemon.save.track import Progress
from ckptd_daemon.save.tracks import Tracks
from ckptd_daemon.sessions import Session


class Outcomes:
    """Tells of attempts that are in hand, and of what lies where checkpoints live."""

    def __init__(self, config: Config, tracks: Tracks, orphans: Orphans) -> None:
        self._save_roots = config.save_roots
        self._read_roots = config.read_roots
        self._tracks = tracks
        self._orphans = orphans

    async def watch(
        self, attempt_id: str, place: Place, step: int, session: Session
    ) -> AsyncIterator[Progress]:
        """Yield the attempt's states until the last; of one long past, just that."""
        track = self._tracks.find(attempt_id)
        if track is not None:
            async for progress in track.follow():
                yield progress
            return
        await _check_user_below(place.root, session, self._save_roots)
        await self._orphans.wait_taken_up(place.root, place.experiment, place.run)
        yield await places.in_thread(recovery.past, place, attempt_id, step, may_leave=True)

    async def checkpoints(
        self, root: str, experiment: str, run: str, session: Session
    ) -> list[Checkpoint]:
        """Return what is committed below *root*; empty names mean every name.

        A save that an earlier life of the job has staged is waited for: to the next, it is made.
        On other nodes, too, until this life has saved: then the earlier one may not any more.
        """
        path = places.checked_root(root)
        await _check_user_below(path, session, (*self._save_roots, *self._read_roots))
        await self._orphans.wait_ended(path, experiment, run, session)
        committed = manifests.committed
        return await places.in_thread(committed, path, experiment, run, may_leave=True)


async def _check_user_below(root: Path, session: Session, allowed: tuple[Path, ...]) -> None:
    uid = session.process.uid
    await places.in_thread(places.check_user_below, root, uid, allowed, may_leave=True)
