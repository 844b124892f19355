"""What becomes of committed checkpoints: kept by their run's rules, pinned, or removed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import anyio
from anyio.abc import TaskGroup

from ckptd_daemon.config import Config
from ckptd_daemon.save import places
from ckptd_daemon.save.attempts import Checkpoint
from ckptd_daemon.save.commit import damage, manifests, removal
from ckptd_daemon.save.commit.damage import Damage
from ckptd_daemon.save.keeping import pins, pointers, retention, standing
from ckptd_daemon.save.keeping.retention import Retention
from ckptd_daemon.save.keeping.standing import Standing
from ckptd_daemon.save.places import Place
from ckptd_daemon.save.turns import Turns
from ckptd_daemon.sessions import Session
from ckptd_proto import errors

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ruling:
    """What is to become of a checkpoint, and why."""

    checkpoint: Checkpoint
    goes: bool
    why: str


class Keeper:
    """The one who removes committed checkpoints: one at a time in each run."""

    def __init__(self, config: Config, tasks: TaskGroup) -> None:
        self._config = config
        self._tasks = tasks
        self._turns = Turns[Place]()
        self._waiting: set[Place] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Config) -> AsyncIterator[Self]:
        """Keep to the rules of runs as they commit."""
        async with anyio.create_task_group() as tasks:
            yield cls(config, tasks)
            tasks.cancel_scope.cancel()

    def __repr__(self) -> str:
        return f"<Keeper [{len(self._turns)} runs at work]>"

    def committed(self, place: Place) -> None:
        """Begin to apply the rules of the run, a step of which is durable now."""
        if place not in self._waiting:
            self._waiting.add(place)
            self._tasks.start_soon(self._keep_to_rules, place)

    async def set_rules(self, place: Place, rules: Retention, session: Session) -> None:
        """Have *rules* apply to the run from its next commit on."""
        await self._check_owner(place, session)
        await places.in_thread(pins.set_rules, place, rules)

    async def pin(self, place: Place, step: int, session: Session, *, pinned: bool) -> bool:
        """Pin the step, or unpin it; says whether that changed anything."""
        await self._check_owner(place, session)
        async with self._turns.take(place):
            return await places.in_thread(_pin if pinned else _unpin, place, step)

    async def remove(
        self, place: Place, step: int, session: Session, *, dry_run: bool, force: bool
    ) -> Checkpoint:
        """Remove the step, or only say that it could be; *force* also the latest.

        Raises `NotFound`, and `FailedPrecondition` if it is pinned, read, or the latest.
        """
        await self._check_owner(place, session)
        async with self._turns.take(place):
            return await places.in_thread(_remove, place, step, dry_run, force)

    async def suspect(
        self, place: Place, step: int, attempt: str, file: str, chunk: int | None, session: Session
    ) -> Damage | None:
        """Look at what somebody found bad, and note it for all if it is; None if it is not.

        Raises `NotFound` if the step is not *attempt*'s any more, and why it cannot be noted.
        """
        await self._check_owner(place, session)
        async with self._turns.take(place):
            found = await places.in_thread(_suspect, place, step, attempt, file, chunk)
        if found is None:
            logger.warning("%s of step %s of %s is as it was saved", file, step, place)
        else:
            logger.error("step %s of %s is corrupt: %s %s", step, place, found.file, found.what)
        return found

    async def collect(
        self,
        root: str,
        experiment: str,
        run: str,
        session: Session,
        *,
        rules: Retention | None,
        dry_run: bool,
    ) -> AsyncIterator[Ruling]:
        """Apply *rules*, or those of each run, to all runs below *root*; yield what became of each step.

        What was removed before and could not be deleted is deleted as well.
        """
        path = places.checked_root(root)
        for place in await places.in_thread(manifests.runs, path, experiment, run):
            await self._check_owner(place, session)
            async with self._turns.take(place):
                found = await places.in_thread(_apply, place, rules, dry_run)
            for ruling in found:
                yield ruling

    async def _keep_to_rules(self, place: Place) -> None:
        async with self._turns.take(place):
            self._waiting.discard(place)
            try:
                for ruling in await places.in_thread(_apply, place, None, False):
                    if ruling.goes:
                        logger.info("removed step %s of %s", ruling.checkpoint.step, place)
            except (OSError, errors.CkptdError) as error:
                logger.warning("cannot keep to the retention of %s: %s", place, error)

    async def _check_owner(self, place: Place, session: Session) -> None:
        """Raise `PermissionDenied` unless the caller may change what is in *place*."""
        uid = session.process.uid
        await places.in_thread(_check_owner, place, uid, self._config.save_roots)


def _check_owner(place: Place, uid: int, save_roots: tuple[Path, ...]) -> None:
    places.check_user_below(place.root, uid, save_roots)
    places.check_no_links(place, uid)
    if uid != os.getuid() and not _is_of(manifests.of_run(place), uid):
        text = f"not all checkpoints in {place} are of user {uid}; ask who runs the daemon"
        raise errors.PermissionDenied(text)


def _is_of(found: Sequence[Checkpoint], uid: int) -> bool:
    """Whether all that is in a run is *uid*'s; of what says nothing, the others of it do."""
    known = [one for one in found if one.flaw is None]
    return all(one.uid == uid for one in known) and bool(known or not found)


def _pin(place: Place, step: int) -> bool:
    _found(place, step)
    was = pins.is_pinned(place, step)
    pins.pin(place, step)
    return not was


def _unpin(place: Place, step: int) -> bool:
    return pins.unpin(place, step)


def _remove(place: Place, step: int, dry_run: bool, force: bool) -> Checkpoint:
    checkpoint = _found(place, step)
    directory = place.step(step)
    if pins.is_pinned(place, step):
        text = f"{directory} is pinned; run `ckptd unpin {directory}` first"
        raise errors.FailedPrecondition(text)
    latest = standing.of(place).latest
    if latest is not None and step == latest.step and not force:
        text = f"{directory} is the latest of its run; pass --force to remove it all the same"
        raise errors.FailedPrecondition(text)
    if dry_run:
        removal.check_unread(directory)
        return checkpoint
    removal.remove(checkpoint)
    _follow(standing.of(place), place, pins.read_rules(place))
    return checkpoint


def _suspect(place: Place, step: int, attempt: str, file: str, chunk: int | None) -> Damage | None:
    checkpoint = _found(place, step)
    if checkpoint.attempt != attempt:
        raise errors.NotFound(f"{place.step(step)} is not attempt {attempt} any more; look again")
    if (known := damage.known(checkpoint)) is not None:
        return known
    if (found := damage.inspect(checkpoint, file, chunk)) is not None:
        damage.note(place, found)
        _follow(standing.of(place), place, pins.read_rules(place))
    return found


def _follow(found: Standing, place: Place, rules: Retention | None) -> None:
    """Have the links, and what is noted of steps, tell of what was *found*."""
    pointers.move(place, found, rules)
    try:
        damage.sweep(place, found.steps)
    except (OSError, errors.CkptdError) as error:
        logger.warning("cannot forget what was corrupt in %s: %s", place, error)


def _apply(place: Place, rules: Retention | None, dry_run: bool) -> list[Ruling]:
    """Return a ruling for each step of the run, carried out unless it is a *dry_run*."""
    own = pins.read_rules(place)
    rules = own if rules is None else rules
    found = standing.of(place)
    if not dry_run:
        _follow(found, place, own)
        _sweep(place)
    kept = retention.reasons(
        found.steps,
        rules or Retention(),
        bad=found.damaged,
        pinned=pins.pinned(place),
        now=time.time(),
    )
    by_step = sorted(found.steps, key=lambda one: one.step)
    rulings = [_ruling(one, kept.get(one.step), dry_run) for one in by_step]
    if not dry_run and any(ruling.goes for ruling in rulings):
        _follow(standing.of(place), place, own)
    return rulings


def _ruling(checkpoint: Checkpoint, why: str | None, dry_run: bool) -> Ruling:
    if why is None and pins.is_pinned(checkpoint.place, checkpoint.step):
        why = "pinned"  # the listing of pins may be old
    if why is not None:
        return Ruling(checkpoint, goes=False, why=why)
    try:
        if dry_run:
            removal.check_unread(checkpoint.place.step(checkpoint.step))
        else:
            removal.remove(checkpoint)
    except errors.NotFound:
        return Ruling(checkpoint, goes=True, why="removed by somebody else")
    except errors.FailedPrecondition:
        return Ruling(checkpoint, goes=False, why="being read")
    return Ruling(checkpoint, goes=True, why="no rule keeps it")


def _sweep(place: Place) -> None:
    """Delete what was removed and could not be deleted then."""
    for path in place.attempts.glob(f"*{removal.GONE}"):
        removal.delete(path)


def _found(place: Place, step: int) -> Checkpoint:
    if (found := manifests.read(place, step)) is None:
        steps = ", ".join(str(one.step) for one in manifests.of_run(place)[-10:]) or "none"
        raise errors.NotFound(f"{place} has no committed step {step}; there are: {steps}")
    return found
