"""How ranks stage an attempt: a slot for each, and its seal; or how one of them gives it up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ckptd_daemon.save import places
from ckptd_daemon.save.arena import headers
from ckptd_daemon.save.arena.arena import Arena
from ckptd_daemon.save.arena.offers import Offers, SlotOffer
from ckptd_daemon.save.attempts import Image, State
from ckptd_daemon.save.commit.proof import check_complete
from ckptd_daemon.save.finisher import Finisher
from ckptd_daemon.save.jobs import Jobs, Member
from ckptd_daemon.save.opening import Opening
from ckptd_daemon.save.orphans import Orphans
from ckptd_daemon.save.reservations import Reservations
from ckptd_daemon.save.track import Track, ended
from ckptd_daemon.save.tracks import Tracks
from ckptd_daemon.sessions import Session
from ckptd_proto import errors


class Staging:
    """Takes attempts from OPEN to STAGED, and hands those on."""

    def __init__(
        self,
        arena: Arena,
        jobs: Jobs,
        tracks: Tracks,
        reservations: Reservations,
        opening: Opening,
        orphans: Orphans,
        finisher: Finisher,
        offers: Offers,
    ) -> None:
        self._arena = arena
        self._jobs = jobs
        self._tracks = tracks
        self._reservations = reservations
        self._opening = opening
        self._orphans = orphans
        self._finisher = finisher
        self._offers = offers

    async def prepare(
        self, job_id: str, rank: int, size_bytes: int, *, session: Session
    ) -> list[SlotOffer]:
        """Allocate the rank's slots for images of *size_bytes* in all."""
        self._jobs.check_open()
        job, member = self._jobs.writer(job_id, rank, session)
        # to claim ends what others have in hand
        await self._orphans.wait_elsewhere(job.key.place, session)
        await self._opening.claim(job)
        slots = await self._reservations.prepare(member.holder, size_bytes)
        return [self._offers.to_write(slot, (), session) for slot in slots]

    async def reserve(
        self,
        attempt_id: str,
        rank: int,
        images: Sequence[Image],
        *,
        mapped: Sequence[str],
        timeout_s: float,
        session: Session,
    ) -> tuple[SlotOffer, list[int]]:
        """Return a slot for the rank's images, and where each goes in it."""
        track, member = self._open_track(attempt_id, rank, session)
        places.check_image_names([image.name for image in images])
        reservation = await self._reservations.reserve(
            track, rank, member.holder, images, timeout_s
        )
        offsets = [laid.offset for laid in reservation.laid]
        return self._offers.to_write(reservation.slot, mapped, session), offsets

    def seal(
        self,
        attempt_id: str,
        rank: int,
        *,
        plan: Sequence[Image] | None,
        metrics: Mapping[str, float],
        session: Session,
    ) -> None:
        """Note that the rank's images are complete; the last rank's seal stages the attempt.

        Nothing here waits: no other call can come between the header and the new state.
        """
        track = self._known(attempt_id, rank, session)
        if track.attempt.state is State.COMMITTED or rank in track.attempt.sealed:
            return
        track, _ = self._open_track(attempt_id, rank, session)
        if (reservation := track.reserved.get(rank)) is None:
            raise errors.FailedPrecondition(f"rank {rank} has reserved nothing; reserve first")
        places.check_metrics(metrics)
        for image in plan or ():
            places.check_image_name(image.name)
        images = tuple(laid.image for laid in reservation.laid)
        whole_plan = None if plan is None else tuple(plan)
        sealed = track.attempt.with_seal(rank, images, plan=whole_plan, metrics=metrics)
        try:
            if sealed.state is State.STAGED and sealed.members is None:
                check_complete(sealed.plan, (i for one in sealed.sealed.values() for i in one))
            header = headers.encode(headers.sealed_by(rank, sealed, reservation.laid))
            reservation.slot.memory.seal(header)
        except errors.CkptdError as failure:
            self._tracks.abort(track, failure)
            self._heard(track.attempt.job.id, rank, session)
            raise
        self._tracks.sealed(track, sealed)
        if sealed.state is State.STAGED:
            self._finisher.finish(track)

    def abort(self, attempt_id: str, rank: int, reason: str, session: Session) -> None:
        """Give an attempt up; one that has ended, or is staged by all ranks, is left alone."""
        track = self._tracks.find(attempt_id)
        self._arena.settle_lost(attempt_id, rank, session.process.uid)
        if track is None:
            return
        self._heard(track.attempt.job.id, rank, session)
        if not track.is_open:
            return
        self._jobs.member(track.attempt.job.id, rank, session)
        text = f"rank {rank} (pid {session.process.pid}) gave up step {track.attempt.step}"
        self._tracks.abort(track, errors.Aborted(f"{text}: {reason}; save again"))
        self._heard(track.attempt.job.id, rank, session)

    def _heard(self, job_id: str, rank: int, session: Session) -> None:
        """Note that the rank calls about a save, so it is not copying into any slot now."""
        member = self._jobs.known(job_id, rank, session)
        if member is not None:
            self._arena.settle(member.holder)

    def _known(self, attempt_id: str, rank: int, session: Session) -> Track:
        self._arena.settle_lost(attempt_id, rank, session.process.uid)
        if (track := self._tracks.find(attempt_id)) is None:
            text = f"the daemon knows no attempt {attempt_id}: it restarted before that was staged"
            raise errors.Aborted(f"{text}; save again")
        return track

    def _open_track(self, attempt_id: str, rank: int, session: Session) -> tuple[Track, Member]:
        track = self._known(attempt_id, rank, session)
        self._heard(track.attempt.job.id, rank, session)
        if track.attempt.state is State.ABORTED or track.doomed:
            raise ended(track)
        _, member = self._jobs.member(track.attempt.job.id, rank, session)
        if track.attempt.state is not State.OPEN:
            text = f"attempt {attempt_id} is staged already; start another"
            raise errors.FailedPrecondition(text)
        return track, member
