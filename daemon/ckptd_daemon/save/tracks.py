"""The attempts that this daemon has in hand, and how the last ones ended."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Final

import anyio

from ckptd_daemon.save.arena.arena import Arena, ArenaStatistics
from ckptd_daemon.save.arena.uses import Content
from ckptd_daemon.save.attempts import Attempt, Checkpoint, State
from ckptd_daemon.save.commit import owner
from ckptd_daemon.save.places import Place
from ckptd_daemon.save.track import Progress, Reservation, Track
from ckptd_proto import errors

logger = logging.getLogger(__name__)

_FINISHED_MAX: Final = 256  # outcomes remembered; older ones are read from the place


@dataclass(frozen=True, slots=True)
class SaveStatistics:
    """What the save half does now."""

    jobs: int
    attempts: tuple[Progress, ...]
    newest: tuple[Checkpoint, ...]
    """The newest step of each run that is, or was lately, saved here."""
    unsaved: tuple[Place, ...]
    """Those runs that have none yet."""
    arena: ArenaStatistics


class Tracks:
    """Every attempt in hand, and the last outcomes."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._going: dict[str, Track] = {}
        self._finished: OrderedDict[str, Track] = OrderedDict()
        self._newest: OrderedDict[Place, Checkpoint | None] = OrderedDict()
        self.give_up: Callable[[Track, errors.CkptdError], None] = self._aborted
        """Ends an attempt that spans several daemons: they are told first."""
        self.changed = anyio.Event()
        """Replaced whenever an attempt comes or ends, gets a slot or another deadline."""

    def __iter__(self) -> Iterator[Track]:
        return iter(list(self._going.values()))

    def __len__(self) -> int:
        return len(self._going)

    @property
    def newest(self) -> tuple[Checkpoint, ...]:
        """The newest step of each run that is saved here, the last committed, or joined, last."""
        return tuple(found for found in self._newest.values() if found is not None)

    @property
    def unsaved(self) -> tuple[Place, ...]:
        """The runs that were joined to save there, and have no step yet."""
        return tuple(place for place, found in self._newest.items() if found is None)

    @property
    def ended(self) -> tuple[Track, ...]:
        """The attempts that ended last, in that order."""
        return tuple(self._finished.values())

    def ids(self) -> frozenset[str]:
        """Return the attempts in hand."""
        return frozenset(self._going)

    def find(self, attempt_id: str) -> Track | None:
        """Return the attempt if it is in hand or ended not long ago."""
        return self._going.get(attempt_id) or self._finished.get(attempt_id)

    def add(self, track: Track) -> None:
        """Take an attempt in hand."""
        self._going[track.attempt.id] = track
        self._tell()

    def sealed(self, track: Track, attempt: Attempt) -> None:
        """Publish what a rank has staged."""
        track.become(attempt)
        self._tell()

    def commit(self, track: Track, checkpoint: Checkpoint) -> None:
        """End an attempt well."""
        self._end(track, track.attempt.committed(checkpoint))

    def abort(self, track: Track, failure: errors.CkptdError) -> None:
        """End an attempt badly; once its followers know, no later daemon takes it up again."""
        if track.attempt.members is None:
            self._aborted(track, failure)
        elif track.doomed is None:
            track.doom(failure)
            self._abandon_unsealed(track)
            self.give_up(track, failure)
            self._tell()

    def dispensable_for(self, place: Place, *, own_only: bool = False) -> Track | None:
        """Return what gives way first to a save into *place*: it waits for a place that fails.

        The oldest of the same run; else, unless *own_only*, of those that nobody follows, then of all.
        """
        waiting = [track for track in self if track.is_waiting_for_place]
        own = [track for track in waiting if track.attempt.job.place == place]
        alone = [track for track in waiting if not track.followers]
        first = next((some for some in (own, alone, waiting) if some), [])
        eligible = own if own_only else first
        return min(eligible, key=lambda track: track.staged_at, default=None)

    def displace(self, victim: Track, why: str) -> None:
        """Give up what waits for its place, for what needs its memory."""
        assert victim.trouble is not None
        failure = victim.trouble.ended(time.monotonic(), why)
        level = logging.WARNING if victim.followers else logging.ERROR
        logger.log(level, "%s is aborted, and was whole in memory: %s", victim, failure)
        self.abort(victim, failure)

    def end(self, track: Track, outcome: Checkpoint | errors.CkptdError) -> None:
        """End an attempt that spans several daemons as they all do."""
        if isinstance(outcome, errors.CkptdError):
            self._aborted(track, outcome)
        else:
            self._end(track, replace(track.attempt, state=State.DURABLE).committed(outcome))

    def open_of(self, job_id: str) -> list[Track]:
        """Return the attempts of the job that are not staged yet."""
        return [
            track
            for track in self._going.values()
            if track.attempt.job.id == job_id and track.is_open
        ]

    def open_before(self, track: Track) -> list[Track]:
        """Return the attempts that were opened earlier and are not staged yet."""
        earlier = takewhile(lambda other: other is not track, self._going.values())
        return [other for other in earlier if other.is_open]

    def note_open(self, track: Track, images_bytes: int | None) -> None:
        """Note that another rank has come, and what it knows of the images of all ranks."""
        track.moved_at = time.monotonic()
        if images_bytes is not None:
            track.images_bytes = images_bytes
        self._tell()

    @contextmanager
    def reserving(self, track: Track, timeout_s: float) -> Iterator[None]:
        """While inside, a rank waits for a slot; it waits for the other ranks as long."""
        track.timeout_s = max(track.timeout_s, timeout_s)
        track.reserving += 1
        try:
            yield
        finally:
            track.reserving -= 1
            track.moved_at = time.monotonic()
            self._tell()

    def hold(self, track: Track, rank: int, reservation: Reservation) -> Reservation | None:
        """Keep the reservation unless the attempt ended, or a repeated call was faster."""
        if track.is_open and rank not in track.reserved:
            track.reserved[rank] = reservation
            self._tell()
        else:
            self._arena.release(reservation.slot)
        return track.reserved.get(rank)

    def note_run(self, place: Place, found: Checkpoint | None) -> None:
        """Note that the run is saved here, and its newest step; None if there is none.

        What was committed meanwhile, by a later save of the same life, stays.
        """
        known = self._newest.pop(place, None)
        self._newest[place] = known if found is None or _is_later(known, found) else found
        while len(self._newest) > _FINISHED_MAX:
            self._newest.popitem(last=False)

    async def wait_none(self) -> None:
        """Wait until no attempt is in hand."""
        while self._going:
            await self.changed.wait()

    async def wait_some(self) -> None:
        """Wait until an attempt is in hand."""
        while not self._going:
            await self.changed.wait()

    def _aborted(self, track: Track, failure: errors.CkptdError) -> None:
        self._end(track, track.attempt.aborted(failure))

    def _abandon_unsealed(self, track: Track) -> None:
        """Leave slots to be taken back from ranks that may not know, and still write."""
        for rank in [rank for rank in track.reserved if rank not in track.attempt.sealed]:
            self._arena.abandon(track.reserved.pop(rank).slot)

    def _end(self, track: Track, attempt: Attempt) -> None:
        self._abandon_unsealed(track)
        is_committed = attempt.state is State.COMMITTED
        for reservation in track.reserved.values():
            content = Content(attempt.id, attempt.job.uid, reservation.laid)
            self._arena.release(reservation.slot, content if is_committed else None)
        track.reserved.clear()
        del self._going[attempt.id]
        self._finished[attempt.id] = track
        while len(self._finished) > _FINISHED_MAX:
            self._finished.popitem(last=False)
        track.become(replace(attempt, plan=None, sealed={}))
        if attempt.checkpoint is not None:
            self.note_run(attempt.checkpoint.place, attempt.checkpoint)
        self._tell()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()


def _is_later(known: Checkpoint | None, found: Checkpoint) -> bool:
    """Whether *known* is of a later save of the same life of their run than *found*."""
    if known is None or known.incarnation != found.incarnation:
        return False
    return owner.sequence_of(known.attempt) > owner.sequence_of(found.attempt)
