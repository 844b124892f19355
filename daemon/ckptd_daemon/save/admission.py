"""What becomes of a save when every slot is taken: decided once, for all of its ranks.

If they have several daemons, the ranks ask each for its `Room` and decide it among themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ckptd_daemon.save.arena.allotment import Allotment
from ckptd_daemon.save.attempts import Skipped, State, WhenFull
from ckptd_daemon.save.jobs import Job
from ckptd_daemon.save.track import Track, is_staged
from ckptd_daemon.save.tracks import Tracks
from ckptd_proto import errors


@dataclass(frozen=True, slots=True)
class Room:
    """What saves of a job take of this daemon's memory."""

    is_full: bool
    waiting: tuple[int, ...]
    """The sequences of those that are staged and that nobody has begun to write."""
    is_writing: bool
    held: tuple[int, ...]
    """The steps of all of them."""


class Admission:
    """Looks at the slots when the first rank opens an attempt; the others are told the same."""

    def __init__(self, allotment: Allotment, tracks: Tracks) -> None:
        self._allotment = allotment
        self._tracks = tracks

    def admit(self, job: Job, step: int, when_full: WhenFull) -> Skipped | None:
        """Return None if the step is to be saved, if need be once a slot has come free."""
        if when_full is WhenFull.WAIT or not self._is_full(job):
            return None
        self._relieve(job, step)
        if not self._is_full(job):
            return None
        if when_full is WhenFull.SKIP:
            held = ", ".join(str(track.attempt.step) for track in self._tracks_of(job))
            text = (
                f"step {step} was skipped: every slot is taken, by step {held or 'of another run'}"
            )
            return Skipped(f"{text}; save less often, or raise `slots_per_rank` or `arena_bytes`")
        if (victim := self._dispensable(job)) is not None:
            self._supersede(victim, step)
        return None

    def room(self, job: Job) -> Room:
        """Return what the job's saves take here."""
        tracks = self._tracks_of(job)
        return Room(
            self._is_full(job),
            tuple(t.attempt.sequence for t in tracks if is_staged(t) and not t.is_persisting),
            any(track.is_persisting for track in tracks),
            tuple(track.attempt.step for track in tracks),
        )

    def supersede(self, job: Job, sequence: int, step: int) -> None:
        """Give the save of that *sequence* up for *step*, as all ranks have agreed.

        Where it is being written, another daemon, which has not begun, gives it up for all.
        """
        for track in self._tracks_of(job):
            if track.attempt.sequence != sequence or not is_staged(track):
                continue
            if track.is_persisting:
                track.become(replace(track.attempt, superseded_by=step))
            else:
                self._supersede(track, step)

    def _relieve(self, job: Job, step: int) -> None:
        """Give up what waits for its place: that is a failure to be told, and no reason to skip."""
        while self._is_full(job):
            victim = self._tracks.dispensable_for(job.key.place, own_only=True)
            if victim is None:
                return
            self._tracks.displace(victim, f"as step {step} needs the memory")

    def _supersede(self, victim: Track, step: int) -> None:
        text = f"step {victim.attempt.step} is superseded by step {step}: every slot was taken"
        failure = errors.Aborted(f"{text}; save less often, or raise `slots_per_rank`")
        victim.become(replace(victim.attempt, superseded_by=step))
        self._tracks.abort(victim, failure)

    def _is_full(self, job: Job) -> bool:
        live = (member for member in job.members.values() if member.is_live)
        return any(self._allotment.is_full(member.holder) for member in live)

    def _dispensable(self, job: Job) -> Track | None:
        """Return the oldest snapshot that is complete and that nobody has begun to write.

        Never the only one: there is another that is being written just then.
        """
        staged = [track for track in self._tracks_of(job) if track.attempt.state is not State.OPEN]
        if not any(track.is_persisting for track in staged):
            return None
        return next((track for track in staged if not track.is_persisting), None)

    def _tracks_of(self, job: Job) -> list[Track]:
        return [track for track in self._tracks if track.attempt.job.id == job.key.id]
