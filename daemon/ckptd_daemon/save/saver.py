"""Saving, as the ranks ask for it: from joining a job to the outcome of an attempt."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

import anyio
from anyio import to_thread

from ckptd_daemon.config import Config
from ckptd_daemon.save import jobs, places, recovery
from ckptd_daemon.save.admission import Admission, Room
from ckptd_daemon.save.arena import headers
from ckptd_daemon.save.arena.arena import Arena, SlotOffer
from ckptd_daemon.save.arena.lending import Lending
from ckptd_daemon.save.arena.uses import Slot
from ckptd_daemon.save.attempts import (
    Attempt,
    Checkpoint,
    Image,
    JobKey,
    Skipped,
    State,
    WhenFull,
)
from ckptd_daemon.save.commit import manifests, owner
from ckptd_daemon.save.commit.proof import check_complete
from ckptd_daemon.save.errands import Errand, Errands
from ckptd_daemon.save.finisher import Finisher
from ckptd_daemon.save.images.writers import Writers
from ckptd_daemon.save.jobs import Job, Jobs, Member
from ckptd_daemon.save.keeping import standing
from ckptd_daemon.save.members import Members
from ckptd_daemon.save.nodes.elsewhere import Elsewhere
from ckptd_daemon.save.nodes.ground import Ground
from ckptd_daemon.save.nodes.protocol import Timing
from ckptd_daemon.save.opening import Asked, Opening
from ckptd_daemon.save.places import Place
from ckptd_daemon.save.preempting import Preempting
from ckptd_daemon.save.preemption import PreemptionStatistics
from ckptd_daemon.save.staging import Staging
from ckptd_daemon.save.track import Progress, Track, ended, is_staged
from ckptd_daemon.save.tracks import SaveStatistics, Tracks
from ckptd_daemon.sessions import Session
from ckptd_proto import errors

logger = logging.getLogger(__name__)


class Saver:
    """Jobs, their attempts and the arena between them."""

    def __init__(
        self,
        config: Config,
        arena: Arena,
        tracks: Tracks,
        finisher: Finisher,
        preempting: Preempting,
        errands: Errands,
        offer: Callable[[int, int], str],
        name: str,
    ) -> None:
        self._config = config
        self._arena = arena
        self._tracks = tracks
        self._finisher = finisher
        self._preempting = preempting
        self._offer = offer
        self._name = name  # in the ids of attempts
        self._staging = Staging(arena, tracks)
        self.lending = Lending(arena, offer)
        self._jobs = Jobs(self._lose)
        self._admission = Admission(arena, tracks)
        self._errands = errands
        self._opening = Opening(self._jobs, tracks, finisher, self._admission, errands, name)
        self._left: dict[Place, Errand[None]] = {}  # runs with attempts of an earlier daemon
        self._elsewhere = Elsewhere(still_s=2 * config.takeover_s)
        self._is_refusing = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        config: Config,
        offer: Callable[[int, int], str],
        on_committed: Callable[[Place], None],
    ) -> AsyncIterator[Self]:
        """Serve saves; begin with finishing what an earlier daemon left staged, each run by itself.

        *offer* gives a token by which a process of a uid collects a descriptor; *on_committed*
        hears of each run that has a new step.
        """
        async with Arena.open(config) as (arena, left), anyio.create_task_group() as tasks:
            tracks = Tracks(arena)
            timing = Timing(takeover_s=config.takeover_s, patience_s=config.peers_wait_s)
            writers, ground = Writers(config), Ground(timing)
            retry_s = config.persist_retry_s
            finisher = Finisher(tracks, tasks, writers, ground, on_committed, retry_s)
            name = await to_thread.run_sync(owner.own_name, config.state_dir)
            preempting = Preempting(config, tracks, finisher, tasks)
            errands = Errands(tasks)
            saver = cls(config, arena, tracks, finisher, preempting, errands, offer, name)
            for place, found in recovery.by_place(left).items():
                await saver._take_up(place, found)
            tasks.start_soon(saver._staging.end_stalled)
            tasks.start_soon(preempting.heed)
            yield saver
            tasks.cancel_scope.cancel()

    def __repr__(self) -> str:
        return f"<Saver [{len(self._jobs)} jobs, {len(self._tracks)} attempts] {self._arena!r}>"

    def statistics(self) -> SaveStatistics:
        """Return counts and attempts as they are now."""
        return SaveStatistics(
            jobs=len(self._jobs),
            attempts=tuple(track.reading() for track in self._tracks),
            newest=self._tracks.newest,
            unsaved=self._tracks.unsaved,
            arena=self._arena.statistics(),
        )

    def preemption(self) -> PreemptionStatistics | None:
        """Return how far saving is, if this daemon or its node is about to go away."""
        return self._preempting.statistics()

    @property
    def notice(self) -> tuple[str, float] | None:
        """Why this node goes away and in how many seconds; None while nobody says so."""
        return self._preempting.notice

    @property
    def is_idle(self) -> bool:
        """No attempt is open or on its way."""
        return len(self._tracks) == 0

    def refuse_new(self) -> None:
        """Take no new attempt; those that are open may still be sealed, the newest goes first."""
        self._is_refusing = True
        self._preempting.stop()
        self.lending.end()
        for job in self._jobs:
            job.exchanges.dismiss()

    async def wait_idle(self) -> None:
        """Wait until every attempt in hand has ended."""
        await self._tracks.wait_none()

    def unfinished(self) -> list[str]:
        """Return a sentence per attempt that the next start finishes, and tell its followers."""
        self._preempting.say_what_became()
        return [
            f"step {track.attempt.step} in {track.attempt.job.place} is staged and not committed"
            for track in self._tracks
            if is_staged(track)
        ]

    async def _take_up(self, place: Place, found: Sequence[Track]) -> None:
        for track in found:
            self._tracks.add(track)
        allowed = self._config.save_roots
        work = partial(recovery.take_up, place, found, self._tracks, self._finisher, allowed)
        what = "being taken up after the daemon's start"
        self._left[place] = await self._errands.begin(place, what, work)

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
        self._check_open()
        uid = session.process.uid
        key = jobs.key_of(place, incarnation, rank=rank, world_size=world_size, uid=uid)
        roots = (*self._config.save_roots, *(self._config.read_roots if read_only else ()))
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

    async def open_attempt(
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

        *images_bytes* is what the images of all ranks here take; None if the rank does not know.
        *daemons* are those of all ranks, and which is each rank's; empty if this is the only one.
        Of several daemons none decides what *when_full* means: *supersedes* is what the ranks have
        agreed to give up. Raises `DeadlineExceeded` if the place does not answer *within_s*.
        """
        self._check_open()
        job, member = self._jobs.writer(job_id, rank, session)
        members = Members.told(*daemons, own_name=self._name, world_size=job.key.world_size)
        if members is not None and when_full is not WhenFull.WAIT:
            text = (
                "no daemon of several decides alone what becomes of a save; ask each for its Room"
            )
            raise errors.InvalidArgument(f"{text}, or update this client")
        if step > places.STEP_MAX:
            raise errors.InvalidArgument(f"step {step} is too large; pass one below 2^63")
        self._abort_overtaken(job, member, sequence)
        self._heard(job_id, rank, session)
        asked = Asked(
            *(rank, sequence, step, plan_hash, replaces, images_bytes),
            *(when_full, members, supersedes),
        )
        with self._errands.answering(job.key.place, within_s):
            return await self._opening.open(job, member, asked)

    def room(self, job_id: str, rank: int, *, session: Session) -> Room:
        """Return what the job's saves take of the memory here."""
        job, _ = self._jobs.writer(job_id, rank, session)
        return self._admission.room(job)

    async def prepare(
        self, job_id: str, rank: int, size_bytes: int, *, session: Session
    ) -> list[SlotOffer]:
        """Allocate the rank's slots for images of *size_bytes* in all."""
        self._check_open()
        job, member = self._jobs.writer(job_id, rank, session)
        await self._wait_elsewhere(job.key.place, session)  # to claim ends what others have in hand
        await self._opening.claim(job)
        need = headers.PAGE_BYTES + headers.padded(size_bytes)
        slots = await self._arena.prepare(member.holder, need)
        return [self._offered(slot, (), session) for slot in slots]

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
        reservation = await self._staging.reserve(track, rank, member.holder, images, timeout_s)
        offsets = [laid.offset for laid in reservation.laid]
        return self._offered(reservation.slot, mapped, session), offsets

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

    async def watch(
        self, attempt_id: str, place: Place, step: int, session: Session
    ) -> AsyncIterator[Progress]:
        """Yield the attempt's states until the last; of one long past, just that."""
        track = self._tracks.find(attempt_id)
        if track is not None:
            async for progress in track.follow():
                yield progress
            return
        await self._check_user_below(place.root, session, self._config.save_roots)
        await self._wait_taken_up(place.root, place.experiment, place.run)
        yield await places.in_thread(recovery.past, place, attempt_id, step, may_leave=True)

    async def checkpoints(
        self, root: str, experiment: str, run: str, session: Session
    ) -> list[Checkpoint]:
        """Return what is committed below *root*; empty names mean every name.

        A save that an earlier life of the job has staged is waited for: to the next, it is made.
        On other nodes, too, until this life has saved: then the earlier one may not any more.
        """
        readable = (*self._config.save_roots, *self._config.read_roots)
        path = places.checked_root(root)
        await self._check_user_below(path, session, readable)
        await self._wait_taken_up(path, experiment, run)
        await self._tracks.wait_orphans(
            *(path, experiment, run),
            is_past=lambda key: self._jobs.is_past(key, session),
            spanning_s=2 * self._config.takeover_s,
        )
        await self._wait_elsewhere(Place(path, experiment, run), session)
        committed = manifests.committed
        return await places.in_thread(committed, path, experiment, run, may_leave=True)

    async def _check_user_below(
        self, root: Path, session: Session, allowed: tuple[Path, ...]
    ) -> None:
        uid = session.process.uid
        await places.in_thread(places.check_user_below, root, uid, allowed, may_leave=True)

    async def _wait_taken_up(self, root: Path, experiment: str, run: str) -> None:
        """Wait until it is known what became of what an earlier daemon left below *root*."""
        for place, errand in self._left.items():
            if place == Place(root, experiment or place.experiment, run or place.run):
                await errand.done.wait()

    async def _wait_elsewhere(self, place: Place, session: Session) -> None:
        """Wait for what nodes have in hand of an earlier life, until the caller's has saved."""
        if (own := self._jobs.has_yet_to_save(place, session)) is not None:
            await self._elsewhere.wait_ended(place, own.incarnation)

    def _check_open(self) -> None:
        if self._is_refusing:
            raise errors.Unavailable("the daemon is stopping; try again when it has restarted")

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

    def _abort_overtaken(self, job: Job, member: Member, sequence: int) -> None:
        """Abort what the rank has passed over: it will never seal it."""
        pid = member.session.process.pid
        for track in self._tracks.open_of(job.key.id):
            attempt = track.attempt
            if attempt.sequence < sequence and member.rank not in attempt.sealed:
                text = f"rank {member.rank} (pid {pid}) went on without staging step {attempt.step}"
                self._tracks.abort(track, errors.Aborted(f"{text}; save again"))

    def _lose(self, job: Job, member: Member, reason: str) -> None:
        for track in self._tracks.open_of(job.key.id):
            if member.rank not in track.attempt.sealed:
                text = f"{reason} before it had staged step {track.attempt.step}; nothing was saved"
                self._tracks.abort(track, errors.Aborted(text))
        if not member.is_live:
            self._arena.settle(member.holder)
        self._arena.forget(member.holder)

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

    def _offered(self, slot: Slot, mapped: Sequence[str], session: Session) -> SlotOffer:
        memory = slot.memory
        known = memory.id in mapped
        token = "" if known else self._offer(memory.fd, session.process.uid)
        return SlotOffer(memory.id, memory.size_bytes, token)
