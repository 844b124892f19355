"""Takes staged attempts to their commit, those of one run in order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from anyio import to_thread
from anyio.abc import TaskGroup

from ckptd_daemon.save.attempts import Attempt, Checkpoint, State
from ckptd_daemon.save.commit import commit
from ckptd_daemon.save.commit.proof import Receipt
from ckptd_daemon.save.images.persist import Staged, persist
from ckptd_daemon.save.images.unchanged import earlier_step
from ckptd_daemon.save.images.writers import Writers
from ckptd_daemon.save.nodes.ground import Ground
from ckptd_daemon.save.nodes.operations import Failed, Steps
from ckptd_daemon.save.nodes.protocol import Outcome
from ckptd_daemon.save.places import Place, check_same_root
from ckptd_daemon.save.tracks import Track, Tracks, ended
from ckptd_daemon.save.turns import Turns
from ckptd_daemon.store import durable
from ckptd_proto import errors

logger = logging.getLogger(__name__)


class Finisher:
    """One task per staged attempt; a cancelled one leaves it staged, for the next start."""

    def __init__(
        self,
        tracks: Tracks,
        tasks: TaskGroup,
        writers: Writers,
        ground: Ground,
        on_committed: Callable[[Place], None],
    ) -> None:
        self._on_committed = on_committed
        self._tracks = tracks
        self._tracks.give_up = self._give_up_everywhere
        self._ground = ground
        self._tasks = tasks
        self._writers = writers
        self._turns = Turns()

    def finish(self, track: Track) -> None:
        """Begin; the outcome is told to those who follow the attempt."""
        finish = self._finish if track.attempt.members is None else self._finish_ours
        self._tasks.start_soon(finish, track)

    async def begin(self, track: Track) -> None:
        """Make the directory of an attempt that spans several daemons, if rank 0 is here.

        Raises why it cannot be, and gives the attempt up.
        """
        attempt = track.attempt
        if attempt.members is None or not attempt.members.leads:
            return
        try:
            outcome = await self._ground.walk(self._ground.course(attempt).create())
        except Failed as failed:
            self._tracks.abort(track, failed.failure)
            raise ended(track) from failed
        if outcome is not None:
            self._tracks.end(track, outcome)

    async def adopt(self, attempt: Attempt, found: Checkpoint) -> Checkpoint:
        """Return *found*, which is what the attempt would become, if all its daemons say so."""
        if attempt.members is None:
            return found
        outcome = await self._ground.walk(self._ground.course(attempt).give_up(found))
        if isinstance(outcome, errors.CkptdError):
            raise outcome
        return outcome

    def refuse(self, attempt: Attempt, failure: errors.CkptdError) -> None:
        """Tell the other daemons, if there are some, that this one will not take part."""
        if attempt.members is not None:
            steps = self._ground.course(attempt).give_up(failure)
            self._tasks.start_soon(self._ground.walk, steps)

    def _give_up_everywhere(self, track: Track, failure: errors.CkptdError) -> None:
        course = self._ground.course(track.attempt)
        self._tasks.start_soon(self._end, track, course.give_up(failure))

    async def _finish_ours(self, track: Track) -> None:
        """Finish the part of this daemon, and end with the others."""
        async with self._turns.take(track.attempt.job.place):
            if track.attempt.state.is_final or track.doomed is not None:
                return  # superseded before its turn came
            track.begin_to_persist()
            await self._end(track, self._ground.course(track.attempt).finish())

    async def _end(self, track: Track, steps: Steps[Outcome]) -> None:
        attempt = track.attempt
        try:
            outcome = await self._ground.walk(steps, partial(self._persist, track))
        except Exception as error:
            logger.exception("bug while saving attempt %s", attempt.id)
            outcome = errors.Internal(
                f"ckptd has a bug ({error!r}); please report the daemon's log"
            )
        place = attempt.job.place
        if isinstance(outcome, errors.CkptdError):
            logger.warning("step %s in %s is aborted: %s", attempt.step, place, outcome)
        else:
            logger.info("committed step %s in %s, with others", attempt.step, place)
        self._tracks.end(track, outcome)
        if (
            isinstance(outcome, Checkpoint)
            and attempt.members is not None
            and attempt.members.leads
        ):
            self._on_committed(place)

    async def _finish(self, track: Track) -> None:
        attempt = track.attempt
        async with self._turns.take(attempt.job.place):
            if track.attempt.state.is_final:
                return  # superseded before its turn came
            track.begin_to_persist()
            try:
                checkpoint = await self._make_durable(track)
            except errors.CkptdError as failure:
                await self._give_up(track, failure)
            except OSError as error:
                text = f"cannot save step {attempt.step} in {attempt.job.place}: {error}"
                await self._give_up(track, errors.FailedPrecondition(f"{text}; look at that place"))
            except Exception as error:
                logger.exception("bug while saving attempt %s", attempt.id)
                text = f"ckptd has a bug ({error!r}); please report the daemon's log"
                await self._give_up(track, errors.Internal(text))
            else:
                self._tracks.commit(track, checkpoint)
                logger.info("committed %s", _told(track))
                self._on_committed(attempt.job.place)

    async def _make_durable(self, track: Track) -> Checkpoint:
        attempt = track.attempt
        await to_thread.run_sync(_make_way, attempt)
        receipts = await self._persist(track, commit.directory_of(attempt))
        # a directory is its own place: what is on this disk is where checkpoints live
        track.become(track.attempt.to(State.DURABLE))
        return await to_thread.run_sync(commit.commit, attempt, receipts)

    async def _persist(self, track: Track, directory: Path) -> list[Receipt]:
        """Write what is staged here into *directory*, made anew: the attempt is LOCAL."""
        attempt = track.attempt
        images = [
            Staged(laid.image, reservation.slot.memory, laid.offset)
            for reservation in track.reserved.values()
            for laid in reservation.laid
        ]

        def written(size_bytes: int) -> None:
            track.done_bytes += size_bytes

        earlier = await to_thread.run_sync(earlier_step, attempt.job.place, attempt.step)
        receipts = await persist(
            directory,
            images,
            attempt.plan_hash,
            writers=self._writers,
            on_written=written,
            earlier=earlier,
        )
        track.become(attempt.to(State.LOCAL))
        return receipts

    async def _give_up(self, track: Track, failure: errors.CkptdError) -> None:
        attempt = track.attempt
        logger.warning("step %s in %s is aborted: %s", attempt.step, attempt.job.place, failure)
        await to_thread.run_sync(commit.discard, attempt)
        self._tracks.abort(track, failure)


def _told(track: Track) -> str:
    """Return what was committed, how much, and how long each phase took."""
    progress, place = track.progress(), track.attempt.job.place
    text = f"step {track.attempt.step} in {place}: {progress.total_bytes / 1e9:.2f} GB"
    if (phases := progress.phases) is None:
        return text
    rate = progress.total_bytes / 1e9 / max(phases.persist_s, 1e-9)
    waited = f", after {phases.waited_s:.2f} s for its turn" if phases.waited_s > 1 else ""
    return f"{text} in {phases.persist_s:.2f} s ({rate:.2f} GB/s){waited}"


def _make_way(attempt: Attempt) -> None:
    """Remove what an earlier daemon wrote of the attempt; raises if the root is not what it was."""
    check_same_root(attempt.job.place.root, attempt.job.root_at)
    commit.clear(attempt)
    durable.make_dirs(attempt.job.place.attempts)
