"""Takes staged attempts to their commit, those of one run in order."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from ckptd_daemon.save import commit
from ckptd_daemon.save.attempts import Attempt, Checkpoint, State
from ckptd_daemon.save.persist import Staged, persist
from ckptd_daemon.save.places import Place, check_same_root
from ckptd_daemon.save.tracks import Track, Tracks
from ckptd_daemon.save.unchanged import earlier_step
from ckptd_daemon.save.writers import Writers
from ckptd_proto import errors

logger = logging.getLogger(__name__)


class Finisher:
    """One task per staged attempt; a cancelled one leaves it staged, for the next start."""

    def __init__(
        self,
        tracks: Tracks,
        tasks: TaskGroup,
        writers: Writers,
        on_committed: Callable[[Place], None],
    ) -> None:
        self._on_committed = on_committed
        self._tracks = tracks
        self._tasks = tasks
        self._writers = writers
        self._turns: dict[Place, anyio.Lock] = {}

    def finish(self, track: Track) -> None:
        """Begin; the outcome is told to those who follow the attempt."""
        self._tasks.start_soon(self._finish, track)

    async def _finish(self, track: Track) -> None:
        attempt = track.attempt
        async with self._turn(attempt.job.place):
            if track.attempt.state.is_final:
                return  # superseded before its turn came
            track.is_persisting = True
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
                logger.info("committed step %s in %s", attempt.step, attempt.job.place)
                self._on_committed(attempt.job.place)

    async def _make_durable(self, track: Track) -> Checkpoint:
        attempt = track.attempt
        images = [
            Staged(laid.image, reservation.slot.memory, laid.offset)
            for reservation in track.reserved.values()
            for laid in reservation.laid
        ]

        def written(size_bytes: int) -> None:
            track.done_bytes += size_bytes

        await to_thread.run_sync(_make_way, attempt)
        earlier = await to_thread.run_sync(earlier_step, attempt.job.place, attempt.step)
        receipts = await persist(
            commit.directory_of(attempt),
            images,
            attempt.plan_hash,
            writers=self._writers,
            on_written=written,
            earlier=earlier,
        )
        track.become(attempt.to(State.LOCAL))
        # a directory is its own place: what is on this disk is where checkpoints live
        track.become(track.attempt.to(State.DURABLE))
        return await to_thread.run_sync(commit.commit, attempt, receipts)

    async def _give_up(self, track: Track, failure: errors.CkptdError) -> None:
        attempt = track.attempt
        logger.warning("step %s in %s is aborted: %s", attempt.step, attempt.job.place, failure)
        await to_thread.run_sync(commit.discard, attempt)
        self._tracks.abort(track, failure)

    @asynccontextmanager
    async def _turn(self, place: Place) -> AsyncIterator[None]:
        lock = self._turns.setdefault(place, anyio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and lock.statistics().tasks_waiting == 0:
                self._turns.pop(place, None)


def _make_way(attempt: Attempt) -> None:
    """Remove what an earlier daemon wrote of the attempt; raises if the root is not what it was."""
    check_same_root(attempt.job.place.root, attempt.job.root_at)
    commit.clear(attempt)
