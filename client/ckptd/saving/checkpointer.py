"""Saving and loading a training job's state: the use case, a page long."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from ckptd.link.connection import Connection
from ckptd.saving import exchange as exchanges
from ckptd.saving.catalog import Catalog
from ckptd.saving.exchange import LEAD, settle
from ckptd.saving.failing import OnFailure
from ckptd.saving.keeping import retain
from ckptd.saving.membership import Membership
from ckptd.saving.notices import Notices
from ckptd.saving.restoring import Restoring
from ckptd.saving.retention import Retention
from ckptd.saving.run import Run
from ckptd.saving.save import Save
from ckptd.saving.stager import WHEN_FULL
from ckptd.saving.steps import StepClock
from ckptd.tensors.local import take
from ckptd.values import Checkpoint, Preempted
from ckptd_proto import errors


class Checkpointer:
    """The checkpoints of one run, for every rank of the job that trains it.

    Every rank makes one, with the same arguments and at the same point, and calls `prepare`,
    `save` and `load` alike. The ranks talk over the process group if there is one, else through
    the node's daemon.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        experiment: str,
        run: str,
        ranks: Literal["self"] | None = None,
        retention: Retention | None = None,
        read_only: bool = False,
        socket: Path | None = None,
        timeout: float = 600.0,
        when_full: Literal["wait", "skip", "supersede"] = "wait",
        on_failure: OnFailure = "fail",
        overlap: bool = True,
    ) -> None:
        """Join the job.

        Args:
            root: The directory below which checkpoints live; seen alike by the daemon.
            experiment: What the run belongs to.
            run: The run; steps are unique in it.
            ranks: "self" if this process is a job of its own, whatever others run beside it.
            retention: Which checkpoints of the run stay once another is committed; from this
                job's first save on, for all that are there. By default all do.
            read_only: The job only loads: `root` need not be writable, and nothing can be saved.
            socket: The daemon's; by default the usual one, started if none runs.
            timeout: Seconds that `save` and `load` wait for other ranks, and for room to stage;
                and, ten more, `save` for a daemon that does not answer.
            when_full: What becomes of a save while all memory for staging is taken by earlier
                ones: "wait" for it; "skip" it, on every rank; or have it "supersede" the oldest
                snapshot that waits to be written. The one that is being written always stays.

            on_failure: What a save that the world let down (a full disk, a dead rank, a daemon that
                does not answer, ranks that do not meet in time) means: "fail" has `save` or `close`
                raise it; "warn" has the training go on with a `SaveFailed` warning; a number has it
                go on until so many failed in a row. A mistake in the call is raised in any case.
                A process group in which ranks have once not met in time, or one has died, may be
                broken for good: then every later save fails, too, until the job is restarted.
            overlap: On a GPU, copy what optimizers own while the next forward and backward run; an
                optimizer's step comes after it. False, if anything else writes to weights before
                the next step: `save` copies everything before it returns.

        Raises:
            InvalidArgument: A name that cannot be a directory, or ranks that name different ones.
            FailedPrecondition: There are other ranks, and no way to them.
            CkptdError: The daemon's reasons.
        """
        _check_when_full(when_full)
        self._timeout_s = timeout
        self._connection = Connection.open(socket)
        self._exchange = exchanges.choose(alone=ranks == "self", timeout_s=timeout)
        place = _checked_root(root)
        member = Membership.join(
            self._connection, self._exchange, place, experiment, run, read_only=read_only
        )
        self._read_only = read_only
        rules = retention or Retention()
        self._run = Run(
            self._connection,
            self._exchange,
            member,
            timeout_s=timeout,
            when_full=when_full,
            on_failure=on_failure,
            overlap=overlap,
            on_first=partial(
                retain,
                *(self._connection, place, experiment, run, rules),
                timeout_s=timeout * LEAD,
            ),
        )
        self._clock = StepClock()
        self._notices = Notices(self._connection, self._exchange)
        self._catalog = Catalog(self._connection, place, experiment, run, retention)
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Checkpointer {self._run.place} [{self._run.saves_in_flight} saves in flight]>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except errors.CkptdError as failure:
            if error is None:
                raise
            error.add_note(f"besides, ckptd could not finish saving: {failure}")

    def prepare(self, state: Mapping[str, Any]) -> None:
        """Agree on the plan and make memory ready, in the background, for saving *state*.

        Without it the first save does so, and takes longer than the others. Every rank calls it.
        """
        self._check_usable(to_save=True)
        self._run.prepare(partial(take, state))

    def save(
        self,
        state: Mapping[str, Any],
        *,
        step: int,
        metrics: Mapping[str, float] | None = None,
        on_existing: Literal["error", "replace"] = "error",
    ) -> Save:
        """Copy *state* out of the training step; return once this rank's part is safe.

        On a GPU the parameters and the state of optimizers in *state* are copied on a stream of
        their own, beside the next forward and backward: they may be changed by the optimizer's
        step, which comes after the copy, and are safe from this rank's death when `staged` of the
        save says so. See `overlap`.

        A step that this job has committed with the same names, shapes and dtypes is not saved
        again, whatever the values are now: the save is done at once, and its result is the
        checkpoint that is there. To save other values, pass on_existing="replace".

        Tensors that several ranks hold, of modules and optimizers, are written once and must be
        equal: a sample of their elements is compared where they lie in host memory.

        Args:
            state: Modules, optimizers, schedulers, tensors and plain values, nested as you like.
            step: What the checkpoint is called; every rank names the same.
            metrics: Numbers to find it by.
            on_existing: What to do with another checkpoint of this step; one that is known to be
                corrupt is replaced in any case.

        Returns:
            The save, to ask for its `result`.

        Raises:
            InvalidArgument: A value would not come back as it is; the message names its key.
            ResourceExhausted: It does not fit; nothing has been copied.
            Aborted: A rank died; the message names it.
            AlreadyExists: The step is committed, with another plan or by another job.
            CkptdError: Also what went wrong with an earlier save, if nobody has heard of it.
        """
        self._check_usable(to_save=True)
        self._clock.watch(state)
        save = self._run.save(
            partial(take, state), step=step, metrics=metrics, on_existing=on_existing
        )
        save.steps = self._clock.begin()
        save.when_done(save.steps.close)
        return save

    def latest(self) -> Checkpoint | None:
        """Return what was saved last in this run, by any job; None if nothing is committed.

        That is not the highest step if a job has gone back to an earlier one and saved since. One
        that is known to be corrupt is passed over; raises `DataLoss` if all are.
        """
        return self._found("latest")

    def best(self) -> Checkpoint | None:
        """Return the committed checkpoint with the best metric, as `retention` says; else None."""
        return self._found("best")

    def _found(self, which: str) -> Checkpoint | None:
        try:
            return self._catalog.find(which)
        except errors.NotFound:
            return None

    def load(
        self,
        state: dict[str, Any],
        which: str | int = "latest",
        *,
        on_corrupt: Literal["error", "previous"] = "error",
    ) -> Checkpoint:
        """Fill *state* in place with what was saved, by any number of ranks.

        Waits for saves in flight first, so that the latest may be one of them. What still lies in
        the memory of this node is read there, all else from files; a copy that is not what was
        saved is logged, and the next is read.

        Args:
            state: As it was given to `save`, or some of its keys. Modules, optimizers and tensors
                are filled where they are; other values are replaced in their dict or list.
            which: "latest" (what was saved last), "best" (as `retention` says), a step, or a uuid.
                A checkpoint that is known to be corrupt is read only if its step or uuid is given.
            on_corrupt: What to do when no copy of it is good: "error", or load the "previous"
                committed step that is, on every rank. Either way it is noted beside the steps, so
                that no later load begins with it.

        Returns:
            The checkpoint that was loaded; its step says which one it was.

        Raises:
            NotFound: Nothing of that name is committed.
            InvalidArgument: The checkpoint lacks something, or has it otherwise; lists it all.
                Nothing has been changed.
            DataLoss: No copy is good; names file and chunk. *state* is to be thrown away.
        """
        self._check_usable()
        beside = self._run.ranks_beside
        restoring = Restoring(self._connection, self._exchange, self._catalog, beside)
        found = self._agreed_checkpoint(which)
        return restoring.load(state, found, on_corrupt=on_corrupt)

    def preempted(self) -> Preempted | None:
        """Say, alike on every rank, whether a node of the job is about to go away.

        Every rank calls it at the same point, such as after every tenth step: the ranks exchange a
        few bytes, as `save` does. Each asks its daemon once a second at most. What is saved then is
        written first, with all that the node can give.

        Returns:
            Why, and how many seconds are left; of several nodes, of the one that goes first. None
            while no node has a notice (the daemon's `preemption_notice`).

        Raises:
            Aborted: A rank died; the message names it.
        """
        self._check_usable()
        return self._notices.agreed()

    def close(self, timeout: float | None = None) -> None:
        """Wait for the saves in flight and leave the job; again: nothing happens.

        Without it a save that failed is logged at the end of the process; what becomes of one that
        is in flight then, only the daemon's log and the list of checkpoints tell.

        Raises:
            DeadlineExceeded: Some save is still in flight after *timeout* seconds; it goes on.
            CkptdError: What went wrong with a save, if nobody has heard of it.
        """
        if self._is_closed:
            return
        self._run.wait_saved(timeout)
        self._is_closed = True
        self._clock.close()
        try:
            self._run.leave()
        finally:
            self._run.raise_untold()

    def _agreed_checkpoint(self, which: str | int) -> Checkpoint:
        """Return what *which* means to rank 0, the same for all ranks."""

        def choose() -> dict[str, Any]:
            self._run.wait_saved(self._timeout_s)  # the latest is one's own, if it gets there
            return {} if self._exchange.rank else self._catalog.told(self._catalog.find(which))

        return self._catalog.heard(settle(self._exchange, choose)[0])

    def _check_usable(self, *, to_save: bool = False) -> None:
        if self._is_closed:
            raise errors.FailedPrecondition("the Checkpointer is closed; make another")
        if to_save and self._read_only:
            text = "the Checkpointer is read-only; make one without read_only=True to save"
            raise errors.FailedPrecondition(text)


def _check_when_full(when_full: str) -> None:
    if when_full not in WHEN_FULL:
        text = f'when_full is {when_full!r}; pass "wait", "skip" or "supersede"'
        raise errors.InvalidArgument(text)


def _checked_root(root: str | os.PathLike[str]) -> Path:
    text = os.fspath(root)
    if "://" in text:
        raise errors.Unimplemented(f"checkpoints live in directories as yet, not at {text!r}")
    return Path(text).absolute()
