"""The attempts that this daemon has in hand, what they hold, and who follows them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import anyio

from ckptd_daemon.save.arena import Arena, Slot
from ckptd_daemon.save.attempts import Attempt, Checkpoint, State
from ckptd_daemon.save.headers import Laid
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

    async def wait_none(self) -> None:
        """Wait until no attempt is in hand."""
        while self._going:
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


def ended(track: Track) -> errors.CkptdError:
    """Return the failure of an aborted attempt as a new error: each call raises its own."""
    failure = track.attempt.failure
    assert failure is not None
    numbers = {}
    if isinstance(failure, errors.ResourceExhausted):
        numbers = {"need_bytes": failure.need_bytes, "free_bytes": failure.free_bytes}
    return errors.rebuilt(type(failure).__name__, str(failure), **numbers)
