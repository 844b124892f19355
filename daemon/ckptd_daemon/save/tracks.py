"""The attempts that this daemon has in hand, what they hold, and who follows them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import anyio

from ckptd_daemon.save.arena import Arena, Slot
from ckptd_daemon.save.attempts import Attempt, Checkpoint, State
from ckptd_daemon.save.headers import Laid
from ckptd_daemon.save.places import Place
from ckptd_proto import errors

_FINISHED_MAX: Final = 256  # outcomes remembered; older ones are read from the place
_PROGRESS_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Reservation:
    """The slot of one rank, and where its images go in it."""

    slot: Slot
    laid: tuple[Laid, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """An attempt as its followers see it."""

    attempt: Attempt
    done_bytes: int
    total_bytes: int


@dataclass(slots=True, eq=False)
class Track:
    """One attempt through its life."""

    attempt: Attempt
    opened_by: int = 0
    """The rank that came first."""
    reserved: dict[int, Reservation] = field(default_factory=dict)
    done_bytes: int = 0
    total_bytes: int = 0
    changed: anyio.Event = field(default_factory=anyio.Event)
    """Replaced at each change of state."""

    def progress(self) -> Progress:
        """Return what is known now."""
        return Progress(self.attempt, self.done_bytes, self.total_bytes)

    def become(self, attempt: Attempt) -> None:
        """Publish the attempt's next value."""
        self.attempt = attempt
        self.total_bytes = self.total_bytes if attempt.state.is_final else attempt.total_bytes
        self.changed.set()
        self.changed = anyio.Event()

    async def cancel_when_final(self, scope: anyio.CancelScope) -> None:
        """Cancel *scope* as soon as nothing more will follow."""
        while not self.attempt.state.is_final:
            await self.changed.wait()
        scope.cancel()

    async def follow(self) -> AsyncIterator[Progress]:
        """Yield each state as it comes, and progress between, until the last."""
        last = None
        while last is None or not last.attempt.state.is_final:
            changed = self.changed
            if (now := self.progress()) != last:
                yield now
                last = now
            elif not now.attempt.state.is_final:
                with anyio.move_on_after(_PROGRESS_S):
                    await changed.wait()


class Tracks:
    """Every attempt in hand, and the last outcomes."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._going: dict[str, Track] = {}
        self._finished: OrderedDict[str, Track] = OrderedDict()
        self._settled = anyio.Event()  # replaced whenever an attempt ends

    def __iter__(self) -> Iterator[Track]:
        return iter(list(self._going.values()))

    def __len__(self) -> int:
        return len(self._going)

    def find(self, attempt_id: str) -> Track | None:
        """Return the attempt if it is in hand or ended not long ago."""
        return self._going.get(attempt_id) or self._finished.get(attempt_id)

    def add(self, track: Track) -> None:
        """Take an attempt in hand."""
        self._going[track.attempt.id] = track

    def commit(self, track: Track, checkpoint: Checkpoint) -> None:
        """End an attempt well."""
        self._end(track, track.attempt.committed(checkpoint))

    def abort(self, track: Track, failure: errors.CkptdError) -> None:
        """End an attempt badly; once its followers know, no later daemon takes it up again."""
        self._end(track, track.attempt.aborted(failure))

    def open_of(self, job_id: str) -> list[Track]:
        """Return the attempts of the job that are not staged yet."""
        return [
            track
            for track in self._going.values()
            if track.attempt.job.id == job_id and track.attempt.state is State.OPEN
        ]

    def hold(self, track: Track, rank: int, reservation: Reservation) -> Reservation | None:
        """Keep the reservation unless the attempt ended, or a repeated call was faster."""
        if track.attempt.state is State.OPEN and rank not in track.reserved:
            track.reserved[rank] = reservation
        else:
            self._arena.release(reservation.slot)
        return track.reserved.get(rank)

    async def wait_none(self) -> None:
        """Wait until no attempt is in hand."""
        while self._going:
            await self._settled.wait()

    async def wait_orphans(
        self, root: Path, experiment: str, run: str, *, is_live: Callable[[str], bool]
    ) -> None:
        """Wait until nothing is staged below *root* by jobs of which no rank lives any more."""

        def is_orphan(track: Track) -> bool:
            job = track.attempt.job
            below = Place(root, experiment or job.place.experiment, run or job.place.run)
            return job.place == below and is_staged(track) and not is_live(job.id)

        while any(map(is_orphan, self)):
            await self._settled.wait()

    def _end(self, track: Track, attempt: Attempt) -> None:
        for reservation in track.reserved.values():
            self._arena.release(reservation.slot)
        track.reserved.clear()
        del self._going[attempt.id]
        self._finished[attempt.id] = track
        while len(self._finished) > _FINISHED_MAX:
            self._finished.popitem(last=False)
        track.become(replace(attempt, plan=None, sealed={}))
        self._settled.set()
        self._settled = anyio.Event()


def is_staged(track: Track) -> bool:
    """Whether neither trainers nor daemon need to live for it to be finished."""
    return not track.attempt.state.is_final and track.attempt.state is not State.OPEN


def check_joinable(track: Track, rank: int, *, step: int, plan_hash: str) -> None:
    """Raise `InvalidArgument` unless *rank* saves the same as the rank that came first."""
    attempt = track.attempt
    if attempt.step != step:
        wrong = f"saves step {attempt.step} and rank {rank} step {step}"
    elif attempt.plan_hash != plan_hash:
        wrong = f"has plan {attempt.plan_hash} and rank {rank} has {plan_hash}"
    else:
        return
    text = f"rank {track.opened_by} {wrong} in the same save; call save() alike in every rank"
    raise errors.InvalidArgument(text)


def ended(track: Track) -> errors.CkptdError:
    """Return the failure of an aborted attempt as a new error: each call raises its own."""
    failure = track.attempt.failure
    assert failure is not None
    numbers = {}
    if isinstance(failure, errors.ResourceExhausted):
        numbers = {"need_bytes": failure.need_bytes, "free_bytes": failure.free_bytes}
    return errors.rebuilt(type(failure).__name__, str(failure), **numbers)
