"""The attempts that this daemon has in hand, what they hold, and who follows them."""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Final

import anyio

from ckptd_daemon.save.arena.arena import Arena, ArenaStatistics
from ckptd_daemon.save.arena.headers import Laid
from ckptd_daemon.save.arena.uses import Content, Slot
from ckptd_daemon.save.attempts import Attempt, Checkpoint, JobKey, State
from ckptd_daemon.save.commit import owner
from ckptd_daemon.save.places import Place
from ckptd_daemon.save.troubles import Trouble
from ckptd_daemon.transfer.progress import Rate
from ckptd_proto import errors

logger = logging.getLogger(__name__)

_FINISHED_MAX: Final = 256  # outcomes remembered; older ones are read from the place
_PROGRESS_S: Final = 0.5
_TIMEOUT_S: Final = 600.0  # until a rank says how long it waits
_SILENT_S: Final = 60.0  # without a byte, while it is written, until its followers are told


@dataclass(frozen=True, slots=True)
class Reservation:
    """The slot of one rank, and where its images go in it."""

    slot: Slot
    laid: tuple[Laid, ...]


@dataclass(frozen=True, slots=True)
class Phases:
    """How long each phase of a committed attempt took on this daemon, in seconds."""

    waited_s: float
    """Staged, until the saves before it had ended."""
    persist_s: float
    """Until its images were durable here."""
    commit_s: float
    """Until all its daemons, if there are several, had theirs, and it was the step."""


@dataclass(frozen=True, slots=True)
class Progress:
    """An attempt as its followers see it."""

    attempt: Attempt
    done_bytes: int
    total_bytes: int
    phases: Phases | None = None
    """When COMMITTED, and this daemon has seen it all."""
    note: str = ""
    """What there is to say besides, in words."""
    rate_bytes_per_s: float = 0.0
    """Over the last few seconds, of a reading for people; 0 unless it is being written."""

    @property
    def eta_s(self) -> float | None:
        """Seconds until its images are written here, at this rate; None if nobody can tell."""
        if self.rate_bytes_per_s <= 0:
            return None
        return max(0, self.total_bytes - self.done_bytes) / self.rate_bytes_per_s


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


@dataclass(slots=True, eq=False)
class Track:
    """One attempt through its life."""

    attempt: Attempt
    opened_by: int = 0
    """The rank that came first."""
    is_left: bool = False
    """An earlier daemon left it: it is taken up, and nobody stages it any more."""
    reserved: dict[int, Reservation] = field(default_factory=dict)
    entered: dict[State, float] = field(default_factory=dict)
    """When it came to be in each state, by the monotonic clock."""
    began_at: float | None = None
    """When its images began to be written; None while they wait."""
    done_bytes: int = 0
    total_bytes: int = 0
    images_bytes: int | None = None
    """What the images of all ranks will take, once rank 0 has said."""
    timeout_s: float = 0.0
    """How long the most patient of its ranks waits for the others."""
    reserving: int = 0
    """Ranks that wait for a slot, with a deadline of their own."""
    moved_at: float = field(default_factory=time.monotonic)
    """When a rank last did what the others wait for, or something was written."""
    note: str = ""
    """What its followers are told besides, in words."""
    doomed: errors.CkptdError | None = None
    """Why this daemon gives up an attempt that spans several, until the place agrees."""
    trouble: Trouble | None = None
    """Why what is staged waits for its place, if it does."""
    followers: int = 0
    """How many calls wait for its outcome."""
    changed: anyio.Event = field(default_factory=anyio.Event)
    """Replaced at each change of state."""
    rate: Rate = field(default_factory=Rate)
    """Of writing its images."""
    _writing: anyio.CancelScope | None = None

    def __str__(self) -> str:
        return f"step {self.attempt.step} of {self.attempt.job.place}"

    @property
    def is_open(self) -> bool:
        """Its ranks may still stage it."""
        return self.attempt.state is State.OPEN and self.doomed is None and not self.is_left

    @property
    def is_waiting_for_place(self) -> bool:
        """It is staged, and nobody writes it, as its place fails."""
        is_waiting = self.trouble is not None and not self.is_persisting
        return is_waiting and self.doomed is None and not self.attempt.state.is_final

    @property
    def stalled_at(self) -> float:
        """When its ranks have waited long enough for each other."""
        return math.inf if self.reserving else self.moved_at + (self.timeout_s or _TIMEOUT_S)

    @property
    def staged_at(self) -> float:
        """When its last rank had sealed, by the monotonic clock; infinite until then."""
        return self.entered.get(State.STAGED, math.inf)

    def unreserved_ranks(self) -> list[int]:
        """Return the ranks that have no slot yet."""
        return [rank for rank in self.attempt.ranks if rank not in self.reserved]

    def progress(self) -> Progress:
        """Return what is known now."""
        note = self.note or self._silence()
        return Progress(self.attempt, self.done_bytes, self.total_bytes, self.phases(), note)

    def wrote(self, size_bytes: int) -> None:
        """Note that so much more was written; called by a writer's thread."""
        self.done_bytes += size_bytes
        self.moved_at = time.monotonic()

    def _silence(self) -> str:
        """Return that its place seems to hang, if it does; several daemons may wait for each other."""
        state, silent_s = self.attempt.state, time.monotonic() - self.moved_at
        is_alone = self.attempt.members is None
        if not self.is_persisting or state.is_final or silent_s < _SILENT_S:
            return ""
        if not is_alone and state is not State.STAGED:
            return ""
        return f"nothing was written for {silent_s // 10 * 10:.0f} s; look at its filesystem"

    def reading(self) -> Progress:
        """Return the same, and how fast it goes."""
        is_moving = self.is_persisting and self.done_bytes < self.total_bytes
        rate = self.rate.read(self.done_bytes, time.monotonic()) if is_moving else 0.0
        return replace(self.progress(), rate_bytes_per_s=rate)

    def become(self, attempt: Attempt) -> None:
        """Publish the attempt's next value."""
        self.attempt = attempt
        self.moved_at = time.monotonic()
        self.entered.setdefault(attempt.state, self.moved_at)
        self.total_bytes = self.total_bytes if attempt.state.is_final else attempt.total_bytes
        self.changed.set()
        self.changed = anyio.Event()

    def begin_to_persist(self) -> None:
        """Note that its turn has come: nothing supersedes it any more."""
        self.began_at = self.moved_at = time.monotonic()
        self.rate.begin(self.done_bytes, self.began_at)

    @property
    def is_persisting(self) -> bool:
        """Its images are being written, or are."""
        return self.began_at is not None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While inside, its images are written; ends early, without an error, if it lets one pass."""
        with anyio.CancelScope() as self._writing:
            yield
        self._writing = None

    def let_pass(self) -> None:
        """Have the writing of its images end, if they are not durable yet."""
        if self._writing is not None:
            self._writing.cancel()

    def wait_again(self) -> None:
        """Note that its images are to be written anew, in another turn."""
        self.began_at, self.done_bytes = None, 0
        if self.attempt.state in {State.LOCAL, State.DURABLE}:
            self.entered = {State.STAGED: self.staged_at}
            self.become(self.attempt.to(State.STAGED))

    def wait_for_place(self, trouble: Trouble, note: str) -> None:
        """Note that it stays staged until its place is well, or it is given up."""
        self.trouble = trouble
        self.wait_again()
        self.remark(note)

    def place_is_well(self) -> None:
        """Note that its place did what it was asked."""
        if self.trouble is not None:
            self.trouble = None
            self.remark("")

    def remark(self, note: str) -> None:
        """Tell its followers *note*."""
        self.note = note
        self.changed.set()
        self.changed = anyio.Event()

    def phases(self) -> Phases | None:
        """Return how long each took, if it is COMMITTED and this daemon has seen it all."""
        at = self.entered
        if self.began_at is None or not at.keys() >= {State.STAGED, State.LOCAL, State.COMMITTED}:
            return None
        return Phases(
            self.began_at - at[State.STAGED],
            at[State.LOCAL] - self.began_at,
            at[State.COMMITTED] - at[State.LOCAL],
        )

    def doom(self, failure: errors.CkptdError) -> None:
        """Have nobody stage it any more."""
        self.doomed = failure
        self.changed.set()
        self.changed = anyio.Event()

    async def cancel_when_over(self, scope: anyio.CancelScope) -> None:
        """Cancel *scope* as soon as nobody may stage it any more."""
        while self.is_open:
            await self.changed.wait()
        scope.cancel()

    async def follow(self) -> AsyncIterator[Progress]:
        """Yield each state as it comes, and progress between, until the last."""
        last = None
        self.followers += 1
        try:
            while last is None or not last.attempt.state.is_final:
                changed = self.changed
                if (now := self.progress()) != last:
                    yield now
                    last = now
                elif not now.attempt.state.is_final:
                    with anyio.move_on_after(_PROGRESS_S):
                        await changed.wait()
        finally:
            self.followers -= 1


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

    async def wait_orphans(
        self,
        root: Path,
        experiment: str,
        run: str,
        *,
        is_past: Callable[[JobKey], bool],
        spanning_s: float,
    ) -> None:
        """Wait until what is staged now below *root*, by jobs that are past, has ended.

        Not for ever for what spans several daemons, as the node of another may be lost, nor for
        what waits for its place.
        """

        def is_orphan(track: Track) -> bool:
            job = track.attempt.job
            below = Place(root, experiment or job.place.experiment, run or job.place.run)
            return job.place == below and is_staged(track) and is_past(job)

        for track in filter(is_orphan, self):
            ends_at = time.monotonic() + spanning_s
            while not track.attempt.state.is_final:
                is_sure = track.attempt.members is None and track.trouble is None
                if not is_sure and time.monotonic() >= ends_at:
                    break
                with anyio.move_on_after(math.inf if is_sure else ends_at - time.monotonic()):
                    await track.changed.wait()

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


def is_staged(track: Track) -> bool:
    """Whether no trainer need live for it to be finished, as far as this daemon knows."""
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
    failure = track.attempt.failure or track.doomed
    assert failure is not None
    numbers = {}
    if isinstance(failure, errors.ResourceExhausted):
        numbers = {"need_bytes": failure.need_bytes, "free_bytes": failure.free_bytes}
    return errors.rebuilt(type(failure).__name__, str(failure), **numbers)
