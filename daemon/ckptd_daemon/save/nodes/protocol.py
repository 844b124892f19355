"""How several daemons bring one attempt to its commit, or to its end. Pure.

The shared directory is all they have in common. A `Course` is what one of them does next: its
methods are generators that yield an operation, and are sent what came of it, or thrown `Failed`
where the place could not do it, or nobody knows whether it did. Nothing is decided by a listing,
nor by comparing clocks; every decision is one `rename` of the attempt's directory: to the step
it becomes, or away. The daemon of rank 0 makes that directory, once; so nothing brings it back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Final

from ckptd_daemon.save.attempts import Attempt, Checkpoint, taken
from ckptd_daemon.save.commit import fences, manifests
from ckptd_daemon.save.commit.proof import Receipt, prove
from ckptd_daemon.save.commit.removal import GONE
from ckptd_daemon.save.members import Members
from ckptd_daemon.save.nodes import receipts
from ckptd_daemon.save.nodes.operations import (
    Exchange,
    Exists,
    Failed,
    Make,
    Note,
    Op,
    Persist,
    Read,
    Refresh,
    Rename,
    Renamed,
    Steps,
    Sweep,
    Sync,
    Wait,
    Write,
)
from ckptd_daemon.save.nodes.receipts import Delivery
from ckptd_daemon.save.places import MANIFEST
from ckptd_proto import errors

RECEIPTS: Final = ".receipts"
NOTE: Final = ".abort"  # why an attempt was given up, beside where it was
REPLACED: Final = ".replaced"  # in it, the old step, until the new one is in place
_TRIES: Final = 5
_GROWTH: Final = 1.5
_TURNS_MAX: Final = 8


Outcome = Checkpoint | errors.CkptdError
"""What an attempt became: a step, or nothing, and why."""


class Sight(Enum):
    """What can be seen of an attempt that has no outcome yet."""

    THERE = "there"
    NOWHERE = "nowhere"


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient a daemon is, by its own clock. Seconds."""

    poll_s: float = 0.05
    poll_max_s: float = 2.0
    takeover_s: float = 30.0
    """How long the next daemon in line leaves the commit to those before it."""
    appear_s: float = 60.0
    """How long the daemon of rank 0 has to begin."""
    patience_s: float = 900.0
    """How long no further receipt may come before the attempt is given up."""


class Course:
    """One daemon's way through an attempt that spans several."""

    def __init__(
        self,
        attempt: Attempt,
        members: Members,
        timing: Timing,
        clock: Callable[[], float],
        token: Callable[[], str],
    ) -> None:
        """*clock* is monotonic, *token* gives a name that nothing has yet."""
        self._attempt = attempt
        self._members = members
        self._timing = timing
        self._clock = clock
        self._token = token
        self._troubles = 0
        self.has_committed = False
        """Whether the rename that made the step was this daemon's, as far as it can know."""
        self._place = attempt.job.place
        self.directory = self._place.attempts / attempt.id
        self._step = self._place.step(attempt.step)
        self._note = self._beside(NOTE)
        # in the attempt's own directory: no late, repeated call can find the way there any more
        self._aside = self.directory / REPLACED

    def create(self) -> Steps[Outcome | None]:
        """Make the attempt's directory, as the daemon of rank 0, once; None if all is well.

        Raises `Failed`: then it is to be given up.
        """
        made = self._beside(f".{self._token()}.new")
        yield Make(made / RECEIPTS)
        renamed = yield Rename(made, self.directory)
        if renamed is not Renamed.DONE:
            yield from self._sweep(made)  # it is there, from before this daemon was restarted
        yield from self._look_again(self._place.attempts)
        if (yield Read(self._note)) is None:
            if renamed is Renamed.MISSING and not (yield Exists(self.directory)):
                raise Failed(self._vanished())
            return None
        return (yield from self.give_up(self._vanished()))  # another was faster to give it up

    def deliver(self) -> Steps[Outcome | None]:
        """Make this daemon's part durable; None if it is for all daemons to `conclude` now."""
        outcome = yield from self._appear()
        if outcome is not None:
            return outcome
        try:
            # who has given a receipt never touches an image again: others may have committed
            if (yield Read(self._receipt_of(self._members.own))) is None:
                images: tuple[Receipt, ...] | None = yield self._persist()
                if images is not None:
                    yield Write(self._receipt_of(self._members.own), self._delivery(images))
        except Failed as failed:
            return (yield from self.give_up(failed.failure))
        return None

    def conclude(self) -> Steps[Outcome]:
        """See to it that the attempt ends, when this daemon has delivered its part."""
        outcome = yield from self._conclude()
        if isinstance(outcome, Checkpoint) and self._members.leads:
            yield from self._tidy(outcome)
        return outcome

    def give_up(self, why: Outcome) -> Steps[Outcome]:
        """Have the attempt never be committed, because of *why*; or learn that it was.

        That may be a checkpoint which has all that the attempt would. Whoever gives an attempt up
        first says why, to all.
        """
        attempt = self._attempt
        note = receipts.encode_note(attempt.id, attempt.job.incarnation, why)
        yield from self._try(Note(self._note, note))
        while True:
            gone = self._beside(f".{self._token()}{GONE}")
            yield from self._look_again(self._place.attempts)  # it may have been made by now
            if self._attempt.replaces:
                yield from self._insist(Rename(self._aside, self._step))
            if (yield from self._insist(Rename(self.directory, gone))) is Renamed.DONE:
                if self._attempt.replaces:
                    yield from self._look_again(gone)  # it was not in there a moment ago
                    yield from self._insist(Rename(gone / REPLACED, self._step))
                yield from self._sweep(gone)
            if (found := (yield from self._committed())) is not None:
                yield from self._sweep(self._note)  # it came too late
                return found
            if not (yield from self._insist(Exists(self.directory))):
                break
        noted = yield from self._noted()
        return why if noted is None else noted

    def look(self) -> Steps[Outcome | Sight]:
        """Return what became of the attempt, or whether it is there at all."""
        if self._attempt.replaces and (found := (yield from self._committed())) is not None:
            return found  # what it replaced may still have the name of the attempt
        yield from self._look_again(self._place.attempts)
        if (yield from self._insist(Exists(self.directory))):
            return Sight.THERE
        if (found := (yield from self._committed())) is not None:
            return found
        noted = yield from self._noted()
        return Sight.NOWHERE if noted is None else noted

    def _appear(self) -> Steps[Outcome | None]:
        """Wait until the attempt's directory is there; return the outcome if it is over."""
        since, pause = self._clock(), self._timing.poll_s
        while True:
            sight = yield from self.look()
            if sight is Sight.THERE:
                return None
            if not isinstance(sight, Sight):
                return sight
            if self._members.leads:
                return self._vanished()  # we made it before anybody staged anything
            if self._clock() - since >= self._timing.appear_s:
                return (yield from self.give_up(self._not_begun()))
            yield Wait(pause)
            pause = self._longer(pause)

    def _conclude(self) -> Steps[Outcome]:
        """Wait for the outcome; commit when it is this daemon's turn, give up in the end."""
        begun = moved_at = self._clock()
        turn_at = begun + self._turn_s()
        pause = self._timing.poll_s
        deliveries: list[Delivery] = []
        while True:
            if self._clock() >= turn_at:
                moved_at = max(moved_at, turn_at)
                before = len(deliveries)
                outcome = yield from self._collect(deliveries)
                if len(deliveries) > before:
                    moved_at, pause = self._clock(), self._timing.poll_s
                if outcome is None and len(deliveries) == len(self._members.names):
                    outcome = yield from self._commit(deliveries)
                if outcome is not None:
                    return outcome
            sight = yield from self.look()
            if sight is Sight.NOWHERE:
                return self._vanished()
            if not isinstance(sight, Sight):
                return sight
            if self._clock() - moved_at >= self._patience_s():
                yield from self._collect(deliveries)
                return (yield from self.give_up(self._lost(len(deliveries))))
            yield Wait(pause)
            pause = self._longer(pause)

    def _collect(self, deliveries: list[Delivery]) -> Steps[Outcome | None]:
        """Read the receipts that have come, in order up to the first that has not."""
        names = self._members.names
        try:
            yield Refresh(self.directory / RECEIPTS)
            for member in range(len(deliveries), len(names)):
                if (data := (yield Read(self._receipt_of(member)))) is None:
                    return None
                deliveries.append(receipts.decode(data, self._attempt, names[member]))
        except Failed:
            return None  # the place will not let us commit, either
        except errors.CkptdError as failure:
            return (yield from self.give_up(failure))
        return None

    def _commit(self, deliveries: list[Delivery]) -> Steps[Outcome | None]:
        """Prove and commit; None if only a look tells what came of it, or it is to be tried again."""
        try:
            manifest = self._proven(deliveries)
        except errors.CkptdError as failure:
            return (yield from self.give_up(failure))
        try:
            fence: bytes | None = yield Read(self._place.fence)
            if (fenced := fences.refusal(fence, self._attempt.job)) is not None:
                return (yield from self.give_up(fenced))
            if not (yield Write(self.directory / MANIFEST, manifest)):
                return None
            self.has_committed = True  # also if nobody learns what came of it
            if (yield Rename(self.directory, self._step)) is Renamed.TAKEN:
                return (yield from self._contend())
        except Failed as failed:
            self._troubles += 1
            if self._troubles >= _TRIES:
                return (yield from self.give_up(failed.failure))
        return None

    def _contend(self) -> Steps[Outcome | None]:
        """Decide what becomes of an attempt whose step is there already."""
        found = yield from self._standing()
        attempt = self._attempt
        if isinstance(found, errors.CkptdError):
            return (yield from self.give_up(found))
        if found is None or found.attempt == attempt.id:
            return None
        if not attempt.replaces:
            return (yield from self.give_up(found if attempt.is_same(found) else taken(found)))
        if (yield Exchange(self.directory, self._step)) is not Renamed.UNSUPPORTED:
            return None
        yield Rename(self._step, self._aside)
        if (yield Rename(self.directory, self._step)) is not Renamed.DONE:
            yield Rename(self._aside, self._step)
        return None

    def _standing(self) -> Steps[Checkpoint | errors.CkptdError | None]:
        """Return what the step is now, an error if that is no checkpoint, None if there is none."""
        yield Refresh(self._place.directory)
        data: bytes | None = yield Read(self._step / MANIFEST)
        try:
            if data is not None:
                return manifests.understood(data, self._place, self._attempt.step)
        except (manifests.Misplaced, errors.Unimplemented) as error:
            text = (
                f"{self._step} is no checkpoint that this ckptd may replace: its {MANIFEST} {error}"
            )
            return errors.AlreadyExists(f"{text}; move it away or save elsewhere")
        if not (yield Exists(self._step)):
            return None
        text = f"{self._step} exists and is no checkpoint of ckptd; move it away or save elsewhere"
        return errors.AlreadyExists(text)

    def _committed(self) -> Steps[Checkpoint | None]:
        """Return the step if it is this attempt's work, durably so."""
        yield from self._look_again(self._place.directory)
        data: bytes | None = yield from self._insist(Read(self._step / MANIFEST))
        if data is None:
            return None
        try:
            found = manifests.decode(data, self._place)
        except (ValueError, errors.Unimplemented):
            return None
        if found.attempt != self._attempt.id:
            return None
        yield from self._insist(Sync(self._place.directory))
        return found

    def _noted(self) -> Steps[Outcome | None]:
        """Return what was noted when the attempt was given up."""
        yield from self._look_again(self._place.attempts)
        data: bytes | None = yield from self._insist(Read(self._note))
        return None if data is None else receipts.decode_note(data, self._place)

    def _look_again(self, directory: Path) -> Steps[None]:
        """Decide nothing by what this node remembers of the names in *directory*."""
        yield from self._insist(Refresh(directory))

    def _tidy(self, found: Checkpoint) -> Steps[None]:
        """Move away what nobody needs once the step is there."""
        left = [self.directory]
        if found.attempt == self._attempt.id:
            left += [self._step / RECEIPTS, self._step / REPLACED]
        for path in left:
            gone = self._beside(f".{self._token()}{GONE}")
            try:
                if (yield Rename(path, gone)) is Renamed.DONE:
                    yield from self._sweep(gone)
            except Failed:
                continue  # the run's next life does it

    def _proven(self, deliveries: list[Delivery]) -> bytes:
        """Return the manifest; raises what is wrong with the receipts."""
        images = [image for delivery in deliveries for image in delivery.images]
        proven = prove(deliveries[0].plan, self._attempt.plan_hash, images)
        whole = replace(self._attempt, metrics=deliveries[0].metrics)
        return manifests.encode(whole, proven)

    def _sweep(self, path: Path) -> Steps[None]:
        try:
            yield Sweep(path)
        except Failed:
            return  # the run's next life does it

    def _try(self, op: Op) -> Steps[Any]:
        pause = self._timing.poll_s
        for _ in range(_TRIES):
            try:
                return (yield op)
            except Failed:
                yield Wait(pause)
                pause = self._longer(pause)
        return None

    def _insist(self, op: Op) -> Steps[Any]:
        """Do *op* until it works: nothing can be said before."""
        pause = self._timing.poll_s
        while True:
            try:
                return (yield op)
            except Failed:
                yield Wait(pause)
                pause = self._longer(pause)

    def _longer(self, pause: float) -> float:
        return min(pause * _GROWTH, self._timing.poll_max_s)

    def _turn_s(self) -> float:
        """How long this daemon leaves the commit to those before it in line."""
        if self._attempt.replaces and not self._members.leads:
            return float("inf")  # two who replace the same step could undo each other's work
        return self._timing.takeover_s * min(self._members.own, _TURNS_MAX)

    def _patience_s(self) -> float:
        alone_decides = self._attempt.replaces and not self._members.leads
        return self._timing.patience_s * (2 if alone_decides else 1)

    def _persist(self) -> Persist:
        return Persist(self.directory, f".{self._members.names[self._members.own]}")

    def _delivery(self, images: tuple[Receipt, ...]) -> bytes:
        return receipts.encode(self._attempt, Delivery.of(self._attempt, images))

    def _receipt_of(self, member: int) -> Path:
        return self.directory / RECEIPTS / f"{self._members.names[member]}.json"

    def _beside(self, suffix: str) -> Path:
        return self._place.attempts / f"{self._attempt.id}{suffix}"

    def _vanished(self) -> errors.CkptdError:
        text = (
            f"attempt {self._attempt.id} of step {self._attempt.step} is gone and nobody noted why"
        )
        return errors.Aborted(f"{text}: given up, or removed since; look what is there")

    def _not_begun(self) -> errors.CkptdError:
        text = (
            f"daemon {self._members.names[0]}, of rank 0, did not begin step {self._attempt.step} "
            f"in {self._place} within {self._timing.appear_s:g} s"
        )
        return errors.Aborted(f"{text}; is that the same directory on every node?")

    def _lost(self, delivered: int) -> errors.CkptdError:
        names = self._members.names
        if delivered == len(names):
            text = f"daemon {names[0]}, of rank 0, did not commit step {self._attempt.step}"
            return errors.Aborted(f"{text} in time; save again")
        ranks = ", ".join(map(str, self._members.ranks(delivered)[:8]))
        text = f"daemon {names[delivered]} (rank {ranks}) did not deliver step {self._attempt.step}"
        return errors.Aborted(
            f"{text} within {self._patience_s():g} s of the others; look at its node"
        )
