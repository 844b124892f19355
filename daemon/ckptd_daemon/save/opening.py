"""How an attempt begins: by the present life of its run, and where its step is free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from ckptd_daemon.save.admission import Admission, Room
from ckptd_daemon.save.attempts import (
    Attempt,
    Checkpoint,
    JobKey,
    Skipped,
    State,
    WhenFull,
    taken,
)
from ckptd_daemon.save.commit import commit, damage, fences, manifests, owner
from ckptd_daemon.save.errands import Errands
from ckptd_daemon.save.finisher import Finisher
from ckptd_daemon.save.jobs import Job, Jobs, Member, check_not_fenced
from ckptd_daemon.save.members import Members
from ckptd_daemon.save.nodes import elsewhere
from ckptd_daemon.save.places import STEP_MAX, Place, in_thread
from ckptd_daemon.save.reservations import Reservations
from ckptd_daemon.save.track import Track, check_joinable, ended
from ckptd_daemon.save.tracks import Tracks
from ckptd_daemon.sessions import Session
from ckptd_proto import errors


@dataclass(frozen=True, slots=True)
class Asked:
    """What a rank wants to save."""

    rank: int
    sequence: int
    step: int
    plan_hash: str
    replaces: bool
    images_bytes: int | None
    when_full: WhenFull
    members: Members | None
    supersedes: int | None
    """The sequence of the save that gives way, if the ranks of several daemons have agreed so."""


class Opening:
    """Opens attempts, one call at a time in each run: two ranks must not both be the first."""

    def __init__(
        self,
        jobs: Jobs,
        tracks: Tracks,
        reservations: Reservations,
        admission: Admission,
        finisher: Finisher,
        errands: Errands,
        name: str,
    ) -> None:
        self._jobs = jobs
        self._tracks = tracks
        self._reservations = reservations
        self._admission = admission
        self._finisher = finisher
        self._errands = errands
        self._name = name  # in the ids of attempts

    def room(self, job_id: str, rank: int, *, session: Session) -> Room:
        """Return what the job's saves take of the memory here."""
        job, _ = self._jobs.writer(job_id, rank, session)
        return self._admission.room(job)

    async def open(
        self,
        job_id: str,
        rank: int,
        *,
        sequence: int,
        step: int,
        plan_hash: str,
        replaces: bool,
        images_bytes: int | None,
        when_full: WhenFull,
        daemons: tuple[Sequence[str], Sequence[int]],
        supersedes: int | None,
        within_s: float | None,
        session: Session,
    ) -> Attempt | Checkpoint | Skipped:
        """Return the attempt of the job's n-th save, or the checkpoint if it exists already.

        It is made by the first rank to come; whoever leaves before that, and asks again, finds it.

        *images_bytes* is what the images of all ranks here take; None if the rank does not know.
        *daemons* are those of all ranks, and which is each rank's; empty if this is the only one.
        Of several daemons none decides what *when_full* means: *supersedes* is what the ranks have
        agreed to give up. Raises `DeadlineExceeded` if the place does not answer *within_s*.
        """
        self._jobs.check_open()
        job, member = self._jobs.writer(job_id, rank, session)
        members = Members.told(*daemons, own_name=self._name, world_size=job.key.world_size)
        if members is not None and when_full is not WhenFull.WAIT:
            text = (
                "no daemon of several decides alone what becomes of a save; ask each for its Room"
            )
            raise errors.InvalidArgument(f"{text}, or update this client")
        if step > STEP_MAX:
            raise errors.InvalidArgument(f"step {step} is too large; pass one below 2^63")
        self._reservations.pass_over(job, member, sequence)
        asked = Asked(
            *(rank, sequence, step, plan_hash, replaces, images_bytes),
            *(when_full, members, supersedes),
        )
        work = partial(self._open, job, member, asked)
        with self._errands.answering(job.key.place, within_s):
            return await self._errands.run(job.key.place, f"opening step {step}", work)

    async def claim(self, job: Job) -> None:
        """Make *job* the present life of its run; raises if a later one has begun."""
        work = partial(self._claim, job)
        await self._errands.run(job.key.place, "looking for its fence", work)

    async def put_back(self, place: Place) -> None:
        """Put back steps that a crash caught between old and new; none that is in hand here."""
        # with its turn: what is begun meanwhile would not be known to be in hand
        work = partial(self._put_back, place)
        await self._errands.run(place, "looking for steps to put back", work)

    async def _open(self, job: Job, member: Member, asked: Asked) -> Attempt | Checkpoint | Skipped:
        await self._claim(job)
        known = job.by_sequence.get(asked.sequence)
        if isinstance(known, Checkpoint | Skipped):
            return known
        track = self._tracks.find(known) if known is not None else None
        if track is None:
            return await self._make(job, member, asked)
        self._check_joined(track, asked)
        self._tracks.note_open(track, asked.images_bytes)
        return track.attempt

    async def _put_back(self, place: Place) -> None:
        await in_thread(commit.put_back, place, self._tracks.ids())

    async def _make(self, job: Job, member: Member, asked: Asked) -> Attempt | Checkpoint | Skipped:
        attempt = Attempt(
            self._attempt_id(job, asked),
            job.key,
            asked.sequence,
            asked.step,
            asked.plan_hash,
            asked.replaces,
            asked.members,
        )
        if not attempt.replaces and await in_thread(_is_known_bad, job.key.place, attempt):
            attempt = replace(attempt, replaces=True)
        found = await self._standing(attempt)
        self._jobs.member(job.key.id, asked.rank, member.session)  # it may have left meanwhile
        if found is not None:
            job.note(asked.sequence, found)
            return found
        if asked.supersedes is not None:
            self._admission.supersede(job, asked.supersedes, asked.step)
        if (skipped := self._admission.admit(job, asked.step, asked.when_full)) is not None:
            job.note(asked.sequence, skipped)
            return skipped
        track = Track(attempt, opened_by=asked.rank, images_bytes=asked.images_bytes)
        self._tracks.add(track)
        job.note(asked.sequence, attempt.id)
        await self._finisher.begin(track)
        return attempt

    def _attempt_id(self, job: Job, asked: Asked) -> str:
        if asked.members is None:
            # a script that starts its ranks again and again is one life, each time counted from 0
            return owner.new_attempt_id(self._name, job.saved_before + asked.sequence)
        return asked.members.attempt_id(job.key.incarnation, asked.sequence)

    async def _standing(self, attempt: Attempt) -> Checkpoint | None:
        """Return what is committed as the step, if that may stay; raises if it is in the way."""
        try:
            found = await in_thread(_look, attempt.job.place, attempt)
            if found is None or attempt.replaces:
                return None
            if not attempt.is_same(found):
                raise taken(found)
        except errors.CkptdError as failure:
            self._finisher.refuse(attempt, failure)
            raise
        return await self._finisher.adopt(attempt, found)

    async def _claim(self, job: Job) -> None:
        """Make *job* the present life of its run, at its first save: a mere reader fences nobody."""
        if self._jobs.present(job.key.place) is job:
            return
        await in_thread(_note_incarnation, job.key.place, job.key, self._name, self._tracks.ids())
        check_not_fenced(job)
        self._jobs.claim(job)

    def _check_joined(self, track: Track, asked: Asked) -> None:
        if track.attempt.state is State.ABORTED or track.doomed:
            raise ended(track)
        try:
            check_joinable(track, asked.rank, step=asked.step, plan_hash=asked.plan_hash)
        except errors.InvalidArgument as failure:
            if track.attempt.state is State.OPEN:
                self._tracks.abort(track, failure)
            raise


def _note_incarnation(_: Place, key: JobKey, name: str, in_hand: frozenset[str]) -> None:
    earlier = fences.claim(key)
    commit.repair(key.place, name, in_hand, earlier)
    elsewhere.end_earlier(key, in_hand, earlier)


def _look(place: Place, attempt: Attempt) -> Checkpoint | None:
    fences.check(attempt.job)
    return manifests.read(place, attempt.step)


def _is_known_bad(place: Place, attempt: Attempt) -> bool:
    """Whether the step is there, and is known not to be what was saved: then it may be replaced."""
    try:
        found = manifests.read(place, attempt.step)
    except errors.CkptdError:
        return False  # what is in the way is told by who looks next
    return found is not None and damage.known(found) is not None
