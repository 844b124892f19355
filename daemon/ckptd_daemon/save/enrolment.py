"""How ranks come into a job, agree there, and leave it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from ckptd_daemon.config import Config
from ckptd_daemon.save import jobs, places
from ckptd_daemon.save.attempts import JobKey
from ckptd_daemon.save.errands import Errands
from ckptd_daemon.save.jobs import Jobs
from ckptd_daemon.save.keeping import standing
from ckptd_daemon.save.opening import Opening
from ckptd_daemon.save.places import Place
from ckptd_daemon.save.tracks import Tracks
from ckptd_daemon.sessions import Session
from ckptd_proto import errors

logger = logging.getLogger(__name__)


class Enrolment:
    """Makes processes ranks of jobs, where their users may save, or read."""

    def __init__(
        self,
        config: Config,
        jobs: Jobs,
        tracks: Tracks,
        opening: Opening,
        errands: Errands,
        name: str,
    ) -> None:
        self._save_roots = config.save_roots
        self._read_roots = config.read_roots
        self._jobs = jobs
        self._tracks = tracks
        self._opening = opening
        self._errands = errands
        self._name = name

    async def join(
        self,
        place: Place,
        incarnation: str,
        *,
        rank: int,
        world_size: int,
        root_device: int,
        root_inode: int,
        read_only: bool,
        within_s: float | None,
        session: Session,
    ) -> tuple[str, str]:
        """Make the caller one rank of a job; return the job's id and this daemon's name.

        Raises `DeadlineExceeded` if the place does not answer within *within_s*.
        """
        self._jobs.check_open()
        uid = session.process.uid
        key = jobs.key_of(place, incarnation, rank=rank, world_size=world_size, uid=uid)
        roots = (*self._save_roots, *(self._read_roots if read_only else ()))
        seen = (root_device, root_inode)
        enter = places.enter_to_read if read_only else places.enter_to_save
        saved_before = 0
        with self._errands.answering(place, within_s):
            root_at = await places.in_thread(enter, place, uid, roots, seen, may_leave=True)
            key = replace(key, root_at=root_at)
            if not read_only:  # a run that is resumed finds every step that was committed
                await self._opening.put_back(place)
                saved_before = await self._look_back(key)
        job = self._jobs.join(key, rank, session, read_only=read_only)
        job.saved_before = max(job.saved_before, saved_before)
        return job.key.id, self._name

    def leave(self, job_id: str, rank: int, session: Session) -> None:
        """Let a rank go."""
        self._jobs.leave(job_id, rank, session)

    def lost_ranks(self, job_id: str) -> Mapping[int, int]:
        """Return the pid of each rank of the job that has died."""
        job = self._jobs.job(job_id)
        return dict(job.lost) if job else {}

    async def gather(
        self,
        job_id: str,
        rank: int,
        name: str,
        payload: bytes,
        *,
        timeout_s: float,
        session: Session,
    ) -> list[bytes]:
        """Return the payload of every rank of the job, in rank order."""
        job, _ = self._jobs.member(job_id, rank, session)
        for lost, pid in job.lost.items():
            raise errors.Aborted(f"rank {lost} (pid {pid}) died; restart the job")
        return await job.exchanges.gather(name, rank, payload, timeout_s=timeout_s)

    async def stand_by(
        self, job_id: str, rank: int, name: str, payload: bytes, *, session: Session
    ) -> None:
        """Return when no rank can need *payload* any more, of a round that *rank* has finished."""
        job, _ = self._jobs.member(job_id, rank, session)
        await job.exchanges.stand_by(name, rank, payload)

    async def _look_back(self, key: JobKey) -> int:
        """Have the status tell of the run from now on; return how many saves this life had before."""
        if self._jobs.is_live(key.id):
            return 0  # another rank's joining has
        try:
            found = await places.in_thread(standing.of, key.place, may_leave=True)
        except errors.CkptdError as error:
            logger.warning("what is saved in %s cannot be seen: %s", key.place, error)
            self._tracks.note_run(key.place, None)
            return 0
        self._tracks.note_run(key.place, found.latest)
        return found.saves_of(key.incarnation)
