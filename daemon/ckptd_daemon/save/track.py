"""One attempt through its life: what it holds, who follows it, and what they are told."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

import anyio

from ckptd_daemon.save.arena.headers import Laid
from ckptd_daemon.save.arena.uses import Slot
from ckptd_daemon.save.attempts import Attempt, State
from ckptd_daemon.save.troubles import Trouble
from ckptd_daemon.transfer.progress import Rate
from ckptd_proto import errors

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
