"""Takes staged attempts to their commit: those of one run in order, or the newest first."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from anyio.abc import TaskGroup

from ckptd_daemon.save import threads
from ckptd_daemon.save.attempts import Attempt, Checkpoint, State
from ckptd_daemon.save.commit import commit, removal
from ckptd_daemon.save.commit.proof import Receipt
from ckptd_daemon.save.images.persist import Staged, persist
from ckptd_daemon.save.images.unchanged import earlier_step
from ckptd_daemon.save.images.writers import Writers
from ckptd_daemon.save.nodes.ground import Ground
from ckptd_daemon.save.nodes.operations import Failed, Steps
from ckptd_daemon.save.nodes.protocol import Outcome
from ckptd_daemon.save.places import Place, check_same_root
from ckptd_daemon.save.preemption import Preemption, superseding
from ckptd_daemon.save.retrying import Retrying, bug, cause, explained, lost_root
from ckptd_daemon.save.track import Track, ended
from ckptd_daemon.save.tracks import Tracks
from ckptd_daemon.save.turns import Turns
from ckptd_daemon.store import durable
from ckptd_proto import errors

logger = logging.getLogger(__name__)


class _LetPass(Exception):
    """The images were not written: a newer attempt of the run goes first."""


class Finisher:
    """One task per staged attempt; a cancelled one leaves it staged, for the next start."""

    def __init__(
        self,
        tracks: Tracks,
        tasks: TaskGroup,
        writers: Writers,
        ground: Ground,
        on_committed: Callable[[Place], None],
        retrying: Retrying,
    ) -> None:
        self._retrying = retrying
        self._on_committed = on_committed
        self._tracks = tracks
        self._tracks.give_up = self._give_up_everywhere
        self._ground = ground
        self._tasks = tasks
        self._writers = writers
        self._writing = Turns[Place]()
        self._ending = Turns[Path]()  # of one step in the order they were staged, always
        self._delivered: dict[Place, Track] = {}  # what was last, and is not a step yet
        self._preemption: Preemption | None = None

    def finish(self, track: Track) -> None:
        """Begin; the outcome is told to those who follow the attempt."""
        self._tasks.start_soon(self._finish, track)
        if self._preemption is not None:
            self._let_pass(track)

    def hurry(self, preemption: Preemption | None) -> None:
        """Have the newest of each run go first, and writing take the whole machine; None: no more."""
        self._preemption = preemption
        self._writing.newest_first = preemption is not None
        self._writers.hurry(is_hurried=preemption is not None)
        if preemption is not None:
            for track in self._tracks:
                self._let_pass(track)

    async def begin(self, track: Track) -> None:
        """Make the directory of an attempt that spans several daemons, if rank 0 is here.

        Raises why it cannot be, and gives the attempt up.
        """
        attempt = track.attempt
        if attempt.members is None or not attempt.members.leads:
            return
        try:
            outcome = await self._ground.walk(
                attempt.job.place, self._ground.course(attempt).create()
            )
        except Failed as failed:
            self._tracks.abort(track, failed.failure)
            raise ended(track) from failed
        if outcome is not None:
            self._tracks.end(track, outcome)

    async def adopt(self, attempt: Attempt, found: Checkpoint) -> Checkpoint:
        """Return *found*, which is what the attempt would become, if all its daemons say so."""
        if attempt.members is None:
            return found
        outcome = await self._ground.walk(
            attempt.job.place, self._ground.course(attempt).give_up(found)
        )
        if isinstance(outcome, errors.CkptdError):
            raise outcome
        return outcome

    def refuse(self, attempt: Attempt, failure: errors.CkptdError) -> None:
        """Tell the other daemons, if there are some, that this one will not take part."""
        if attempt.members is not None:
            steps = self._ground.course(attempt).give_up(failure)
            self._tasks.start_soon(self._ground.walk, attempt.job.place, steps)

    def _give_up_everywhere(self, track: Track, failure: errors.CkptdError) -> None:
        course = self._ground.course(track.attempt)
        self._tasks.start_soon(self._conclude, track, course.give_up(failure))

    def _let_pass(self, newer: Track) -> None:
        """Have an older attempt of the run, that is being written, wait for *newer* if that waits."""
        if newer.attempt.state is not State.STAGED or newer.is_persisting or newer.doomed:
            return
        for track in self._tracks:
            is_same_run = track.attempt.job.place == newer.attempt.job.place
            is_older = track.staged_at < newer.staged_at
            if is_same_run and is_older and track.attempt.step != newer.attempt.step:
                track.let_pass()

    async def _finish(self, track: Track) -> None:
        """Finish the attempt, or the part of it that this daemon has."""
        attempt = track.attempt
        act = self._finish_alone if attempt.members is None else self._finish_ours
        async with self._ending.take(attempt.job.place.step(attempt.step)):
            while not await act(track):
                if track.is_persisting:
                    track.wait_again()
                    logger.info("%s waits for a newer step of its run, which goes first", track)
                elif track.trouble is not None:
                    await self._wait_for_place(track)

    async def _wait_for_place(self, track: Track) -> None:
        await self._retrying.wait(track, is_hurried=self._preemption is not None)

    def _begin_to_write(self, track: Track) -> bool:
        """Say whether the attempt, whose turn has come, is to be written still."""
        if track.attempt.state.is_final or track.doomed is not None:
            return False  # superseded before its turn came
        if self._preemption is not None:
            newer = superseding(track, self._tracks.ended, self._preemption, time.monotonic())
            if newer is not None:
                self._supersede(track, newer)
                return False
        track.begin_to_persist()
        return True

    def _supersede(self, track: Track, newer: Track) -> None:
        step = newer.attempt.step
        text = f"step {track.attempt.step} is superseded by step {step}, which is saved"
        failure = errors.Aborted(f"{text}: there was no time to write both before the node goes")
        track.become(replace(track.attempt, superseded_by=step))
        self._tracks.abort(track, failure)

    async def _finish_ours(self, track: Track) -> bool:
        """Deliver the part of this daemon, and end with the others; False if a newer one passes."""
        course = self._ground.course(track.attempt)
        place = track.attempt.job.place
        outcome: Outcome | None = None
        async with self._writing.take(place, track.staged_at):
            if not self._begin_to_write(track):
                return True
            try:
                if (failure := await lost_root(track)) is not None:
                    if self._retrying.put_off(track, failure, failure):
                        return False
                    # nobody could read why
                    self._end(track, self._retrying.in_the_end(track, failure))
                    return True
                track.place_is_well()
                deliver, persist_ours = course.deliver(), partial(self._insist, track)
                outcome = await self._ground.walk(place, deliver, persist_ours)
            except _LetPass:
                return False
            except Exception as error:
                logger.exception("bug while saving attempt %s", track.attempt.id)
                outcome = bug(error)
            self._delivered[place] = track
        # the others may take long: what is next is written meanwhile
        if outcome is None:
            await self._conclude(track, course.conclude())
        else:
            self._end(track, outcome)
        if self._delivered.get(place) is track:
            del self._delivered[place]
        is_ours = course.has_committed or (track.attempt.members and track.attempt.members.leads)
        if is_ours and track.attempt.state is State.COMMITTED:
            self._on_committed(place)
        return True

    async def _conclude(self, track: Track, steps: Steps[Outcome]) -> None:
        try:
            outcome = await self._ground.walk(track.attempt.job.place, steps)
        except Exception as error:
            logger.exception("bug while saving attempt %s", track.attempt.id)
            outcome = bug(error)
        self._end(track, outcome)

    def _end(self, track: Track, outcome: Outcome) -> None:
        attempt, place = track.attempt, track.attempt.job.place
        if attempt.state.is_final:
            return  # it was given up for another while it waited for its place
        if isinstance(outcome, errors.CkptdError):
            _log_lost(track, outcome)
        else:
            logger.info("committed step %s in %s, with others", attempt.step, place)
        self._tracks.end(track, outcome)

    async def _finish_alone(self, track: Track) -> bool:
        """Write and commit; False if a newer attempt is to pass."""
        attempt = track.attempt
        async with self._writing.take(attempt.job.place, track.staged_at):
            if not self._begin_to_write(track):
                return True
            try:
                checkpoint = await self._make_durable(track)
            except _LetPass:
                await self._discard(attempt)  # it may need the space
                return False
            except Exception as error:  # noqa: BLE001  told to those who follow; a bug is logged
                error = await cause(track, error)
                failure = explained(error, attempt)
                if self._retrying.put_off(track, error, failure):
                    await self._discard(attempt)  # a disk that is full, too
                    return False
                await self._give_up(track, failure)
            else:
                track.place_is_well()
                self._tracks.commit(track, checkpoint)
                logger.info("committed %s", _told(track))
                self._on_committed(attempt.job.place)
        return True

    async def _make_durable(self, track: Track) -> Checkpoint:
        attempt, root = track.attempt, track.attempt.job.place.root
        if (found := await threads.run(root, _make_way, attempt)) is not None:
            track.become(track.attempt.to(State.LOCAL).to(State.DURABLE))
            return found
        receipts = await self._persist(track, commit.directory_of(attempt))
        # a directory is its own place: what is on this disk is where checkpoints live
        track.become(track.attempt.to(State.DURABLE))
        return await threads.run(root, commit.commit, attempt, receipts)

    async def _insist(self, track: Track, directory: Path) -> list[Receipt]:
        """Do as `_persist`, again and again while the place may be well again.

        The others wait as long as they like: who gives up moves *directory* away.
        """
        while True:
            try:
                receipts = await self._persist(track, directory)
            except (OSError, errors.CkptdError) as error:
                why = await cause(track, error)
                if not self._retrying.put_off(track, why, explained(why, track.attempt)):
                    raise
            else:
                track.place_is_well()
                return receipts
            await self._wait_for_place(track)
            await threads.run(track.attempt.job.place.root, removal.delete, directory)
            if track.doomed is not None:
                raise ended(track)  # its memory is another's by now
            track.begin_to_persist()

    async def _discard(self, attempt: Attempt) -> None:
        await threads.run(attempt.job.place.root, commit.discard, attempt)

    async def _persist(self, track: Track, directory: Path) -> list[Receipt]:
        """Write what is staged here into *directory*, made anew: the attempt is LOCAL.

        Raises `_LetPass` when that is to wait.
        """
        attempt = track.attempt
        images = [
            Staged(laid.image, reservation.slot.memory, laid.offset)
            for reservation in track.reserved.values()
            for laid in reservation.laid
        ]

        root = attempt.job.place.root
        earlier = await threads.run(root, self._earlier, attempt)
        with track.writing():
            receipts = await persist(
                root,
                directory,
                images,
                attempt.plan_hash,
                writers=self._writers,
                on_written=track.wrote,
                earlier=earlier,
            )
            track.become(track.attempt.to(State.LOCAL))  # it may know more by now
            return receipts
        raise _LetPass

    def _earlier(self, attempt: Attempt) -> list[Path]:
        """Return the directories of the step before, where what did not change may lie."""
        place = attempt.job.place
        found = earlier_step(place, attempt.step)
        directories = [] if found is None else [found]
        before = self._delivered.get(place)
        if before is not None and before.attempt.step < attempt.step:  # by now it may be the step
            directories = [commit.directory_of(before.attempt), place.step(before.attempt.step)]
        return directories

    async def _give_up(self, track: Track, failure: errors.CkptdError) -> None:
        failure = self._retrying.in_the_end(track, failure)
        await self._discard(track.attempt)
        if not track.attempt.state.is_final:  # it was given up for another meanwhile
            _log_lost(track, failure)
            self._tracks.abort(track, failure)


def _log_lost(track: Track, failure: errors.CkptdError) -> None:
    """Say that what was staged is lost: loudly if it is told to nobody else."""
    level = logging.WARNING if track.followers else logging.ERROR
    logger.log(level, "%s is aborted, and was whole in memory: %s", track, failure)


def _told(track: Track) -> str:
    """Return what was committed, how much, and how long each phase took."""
    progress, place = track.progress(), track.attempt.job.place
    text = f"step {track.attempt.step} in {place}: {progress.total_bytes / 1e9:.2f} GB"
    if (phases := progress.phases) is None:
        return text
    rate = progress.total_bytes / 1e9 / max(phases.persist_s, 1e-9)
    waited = f", after {phases.waited_s:.2f} s for its turn" if phases.waited_s > 1 else ""
    return f"{text} in {phases.persist_s:.2f} s ({rate:.2f} GB/s){waited}"


def _make_way(attempt: Attempt) -> Checkpoint | None:
    """Remove what an earlier try, or daemon, wrote of the attempt; return the step if it made that.

    Raises if the root is not what it was.
    """
    check_same_root(attempt.job.place.root, attempt.job.root_at)
    if (found := commit.settled(attempt)) is not None:
        return found
    commit.clear(attempt)
    durable.make_dirs(attempt.job.place.attempts)
    return None
