"""Slots for the ranks of open attempts: in the order those were opened, and not for ever."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Final

import anyio

from ckptd_daemon.save.arena import headers
from ckptd_daemon.save.arena.allotment import Allotment
from ckptd_daemon.save.arena.arena import Arena
from ckptd_daemon.save.arena.uses import GRAIN_BYTES, WASTE_MAX, Holder, Slot
from ckptd_daemon.save.attempts import Image
from ckptd_daemon.save.jobs import Job, Member
from ckptd_daemon.save.places import IMAGES_MAX
from ckptd_daemon.save.track import Reservation, Track, ended
from ckptd_daemon.save.tracks import Tracks
from ckptd_proto import errors

_RELIEF_S: Final = 1.0  # that a rank waits for memory before something is given up for it


class Reservations:
    """Gives each rank of an attempt its slot, and ends the attempts that can be staged no more."""

    def __init__(self, arena: Arena, allotment: Allotment, tracks: Tracks) -> None:
        self._arena = arena
        self._allotment = allotment
        self._tracks = tracks

    async def prepare(self, holder: Holder, size_bytes: int) -> list[Slot]:
        """Return the holder's slots, allocated for images of *size_bytes* in all."""
        need = headers.PAGE_BYTES + headers.padded(size_bytes)
        return await self._allotment.prepare(holder, need)

    async def reserve(
        self, track: Track, rank: int, holder: Holder, images: Sequence[Image], timeout_s: float
    ) -> Reservation:
        """Return the rank's slot and where its images go in it; again: the same.

        Raises what ended the attempt, if it ends meanwhile.
        """
        laid, size = headers.layout(tuple(images))
        reservation = track.reserved.get(rank)
        if reservation is None:
            beside = sum(other.slot.size_bytes for other in track.reserved.values())
            self._allotment.check_fits(size, beside_bytes=beside)
            with self._tracks.reserving(track, timeout_s):
                reservation = await self._take(track, rank, holder, laid, size, timeout_s)
        if reservation is None:
            raise ended(track)
        if reservation.laid != laid:
            text = f"rank {rank} reserved twice for {track.attempt.id}, with different images"
            raise errors.InvalidArgument(f"{text}; reserve once per save")
        return reservation

    def pass_over(self, job: Job, member: Member, sequence: int) -> None:
        """Note that the rank is at its save *sequence*, and copies nothing now.

        What it has not sealed of those before it never will: they are aborted.
        """
        pid = member.session.process.pid
        for track in self._tracks.open_of(job.key.id):
            attempt = track.attempt
            if attempt.sequence < sequence and member.rank not in attempt.sealed:
                text = f"rank {member.rank} (pid {pid}) went on without staging step {attempt.step}"
                self._tracks.abort(track, errors.Aborted(f"{text}; save again"))
        self._arena.settle(member.holder)

    def lose(self, job: Job, member: Member, reason: str) -> None:
        """Note that the rank will not save any more: abort what it has not sealed."""
        for track in self._tracks.open_of(job.key.id):
            if member.rank not in track.attempt.sealed:
                text = f"{reason} before it had staged step {track.attempt.step}; nothing was saved"
                self._tracks.abort(track, errors.Aborted(text))
        if not member.is_live:
            self._arena.settle(member.holder)
        self._arena.forget(member.holder)

    async def end_stalled(self) -> None:
        """Abort attempts of which some rank keeps the others waiting for longer than they want."""
        while True:
            changed, now = self._tracks.changed, time.monotonic()
            for track in self._tracks:
                if track.is_open and track.stalled_at <= now:
                    self._tracks.abort(track, _stalled(track))
            waiting = [track for track in self._tracks if track.is_open]
            next_s = min((track.stalled_at - now for track in waiting), default=math.inf)
            with anyio.move_on_after(next_s):
                await changed.wait()

    async def _take(
        self,
        track: Track,
        rank: int,
        holder: Holder,
        laid: tuple[headers.Laid, ...],
        size_bytes: int,
        timeout_s: float,
    ) -> Reservation | None:
        """Return None if the attempt ended meanwhile."""
        until = time.monotonic() + timeout_s
        reservation = failure = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(track.cancel_when_over, tasks.cancel_scope)
            try:
                with anyio.move_on_after(timeout_s):
                    await self._wait_turn(track)
                if (ahead := self._ahead(track)) is not None:
                    raise _behind(track, ahead, timeout_s)
                left_s = max(0.0, until - time.monotonic())
                tasks.start_soon(self._relieve, track, holder)
                slot = await self._allotment.reserve(
                    holder,
                    size_bytes,
                    purpose=str(track),
                    timeout_s=left_s,
                    attempt=track.attempt.id,
                )
                reservation = self._tracks.hold(track, rank, Reservation(slot, laid))
            except errors.CkptdError as error:
                failure = error  # raised below, without the group around it
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return reservation

    async def _relieve(self, track: Track, holder: Holder) -> None:
        """Give up, for a rank that waits for memory, what waits for its place: one after another."""
        while True:
            await anyio.sleep(_RELIEF_S)
            own_only = self._allotment.has_its_share(holder)
            victim = self._tracks.dispensable_for(track.attempt.job.place, own_only=own_only)
            if victim is not None:
                self._tracks.displace(victim, f"as {track} needs the memory")

    async def _wait_turn(self, track: Track) -> None:
        """Wait until the attempt can be staged together with all that were opened before it.

        Otherwise each of two could hold what the other waits for.
        """
        while self._ahead(track) is not None:
            await self._tracks.changed.wait()

    def _ahead(self, track: Track) -> Track | None:
        """Return the attempt to wait for, None if it is this one's turn."""
        earlier = self._tracks.open_before(track)
        lacking = next((other for other in earlier if other.unreserved_ranks()), None)
        needs = [_most_bytes(other) for other in (*earlier, track)]
        if sum(needs) <= self._arena.budget_bytes:
            return None
        return lacking


def _most_bytes(track: Track) -> float:
    """Return how much the slots of the attempt take at most; all there is if nobody has said."""
    if not track.unreserved_ranks():
        return sum(reservation.slot.size_bytes for reservation in track.reserved.values())
    if track.images_bytes is None:
        return math.inf
    world = track.attempt.job.world_size
    beside = (1 + IMAGES_MAX) * headers.PAGE_BYTES + GRAIN_BYTES
    return WASTE_MAX * (track.images_bytes + world * beside)


def _behind(track: Track, ahead: Track, timeout_s: float) -> errors.DeadlineExceeded:
    missing = ", ".join(map(str, ahead.unreserved_ranks()))
    text = f"{ahead} was begun before {track} and its rank {missing} has no slot yet"
    return errors.DeadlineExceeded(
        f"{text} after {timeout_s:g} s; look at that job, or raise `arena_bytes`"
    )


def _stalled(track: Track) -> errors.Aborted:
    late = ", ".join(map(str, track.attempt.unsealed_ranks()))
    text = f"rank {late} did not stage step {track.attempt.step} within {track.timeout_s:g} s"
    return errors.Aborted(f"{text} of the last sign of progress; look at what it does")
