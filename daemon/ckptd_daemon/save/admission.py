"""What becomes of a save when every slot is taken: decided once, for all of its ranks."""

from __future__ import annotations

from dataclasses import replace

from ckptd_daemon.save.arena.arena import Arena
from ckptd_daemon.save.attempts import Skipped, State, WhenFull
from ckptd_daemon.save.jobs import Job
from ckptd_daemon.save.tracks import Track, Tracks
from ckptd_proto import errors


class Admission:
    """Looks at the slots when the first rank opens an attempt; the others are told the same."""

    def __init__(self, arena: Arena, tracks: Tracks) -> None:
        self._arena = arena
        self._tracks = tracks

    def admit(self, job: Job, step: int, when_full: WhenFull) -> Skipped | None:
        """Return None if the step is to be saved, if need be once a slot has come free."""
        if when_full is WhenFull.WAIT or not self._is_full(job):
            return None
        if when_full is WhenFull.SKIP:
            held = ", ".join(str(track.attempt.step) for track in self._tracks_of(job))
            text = (
                f"step {step} was skipped: every slot is taken, by step {held or 'of another run'}"
            )
            return Skipped(f"{text}; save less often, or raise `slots_per_rank` or `arena_bytes`")
        if (victim := self._dispensable(job)) is not None:
            text = f"step {victim.attempt.step} is superseded by step {step}: every slot was taken"
            failure = errors.Aborted(f"{text}; save less often, or raise `slots_per_rank`")
            victim.become(replace(victim.attempt, superseded_by=step))
            self._tracks.abort(victim, failure)
        return None

    def _is_full(self, job: Job) -> bool:
        live = (member for member in job.members.values() if member.is_live)
        return any(self._arena.is_full(member.holder) for member in live)

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
