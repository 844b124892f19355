"""How an attempt begins: by the present life of its run, and where its step is free."""

from __future__ import annotations

from dataclasses import dataclass

import anyio

from ckptd_daemon.save.admission import Admission
from ckptd_daemon.save.attempts import (
    Attempt,
    Checkpoint,
    JobKey,
    Skipped,
    State,
    WhenFull,
    taken,
)
from ckptd_daemon.save.commit import commit, fences, manifests, owner
from ckptd_daemon.save.finisher import Finisher
from ckptd_daemon.save.jobs import Job, Jobs, Member, check_not_fenced
from ckptd_daemon.save.members import Members
from ckptd_daemon.save.nodes import elsewhere
from ckptd_daemon.save.places import Place, in_thread
from ckptd_daemon.save.tracks import Track, Tracks, check_joinable, ended
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
    """Opens attempts, one call at a time: two ranks must not both be the first."""

    def __init__(
        self, jobs: Jobs, tracks: Tracks, finisher: Finisher, admission: Admission, name: str
    ) -> None:
        self._admission = admission
        self._jobs = jobs
        self._tracks = tracks
        self._finisher = finisher
        self._name = name
        self._lock = anyio.Lock()

    async def open(self, job: Job, member: Member, asked: Asked) -> Attempt | Checkpoint | Skipped:
        """Return the attempt, made by the first rank to come; or the checkpoint that is there."""
        async with self._lock:
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

    async def claim(self, job: Job) -> None:
        """Make *job* the present life of its run; raises if a later one has begun."""
        async with self._lock:
            await self._claim(job)

    async def put_back(self, place: Place) -> None:
        """Put back steps that a crash caught between old and new; none that is in hand here."""
        async with self._lock:  # what is begun meanwhile would not be known to be in hand
            await in_thread(commit.put_back, place, self._tracks.ids())

    async def _make(self, job: Job, member: Member, asked: Asked) -> Attempt | Checkpoint | Skipped:
        attempt = Attempt(
            self._attempt_id(job.key, asked),
            job.key,
            asked.sequence,
            asked.step,
            asked.plan_hash,
            asked.replaces,
            asked.members,
        )
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

    def _attempt_id(self, key: JobKey, asked: Asked) -> str:
        if asked.members is None:
            return owner.new_attempt_id(self._name, asked.sequence)
        return asked.members.attempt_id(key.incarnation, asked.sequence)

    async def _standing(self, attempt: Attempt) -> Checkpoint | None:
        """Return what is committed as the step, if that may stay; raises if it is in the way."""
        try:
            found = await in_thread(_look, attempt)
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
        await in_thread(self._note_incarnation, job.key, self._tracks.ids())
        check_not_fenced(job)
        self._jobs.claim(job)

    def _note_incarnation(self, key: JobKey, in_hand: frozenset[str]) -> None:
        earlier = fences.claim(key)
        commit.repair(key.place, self._name, in_hand, earlier)
        elsewhere.end_earlier(key, in_hand, earlier)

    def _check_joined(self, track: Track, asked: Asked) -> None:
        if track.attempt.state is State.ABORTED or track.doomed:
            raise ended(track)
        try:
            check_joinable(track, asked.rank, step=asked.step, plan_hash=asked.plan_hash)
        except errors.InvalidArgument as failure:
            if track.attempt.state is State.OPEN:
                self._tracks.abort(track, failure)
            raise


def _look(attempt: Attempt) -> Checkpoint | None:
    fences.check(attempt.job)
    return manifests.read(attempt.job.place, attempt.step)
