"""One run as one of its ranks saves into it: plans, staged copies, saves in flight."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ckptd.link.connection import Connection
from ckptd.saving import failing, fullness
from ckptd.saving.exchange import Exchange, Watched
from ckptd.saving.failing import Failures, OnFailure
from ckptd.saving.membership import Membership
from ckptd.saving.planning import Agreed, Planner, Take
from ckptd.saving.save import Save, failed
from ckptd.saving.stager import ON_EXISTING, Stager
from ckptd_proto import errors

_STEP_MAX: Final = (1 << 63) - 1
_METRICS_MAX: Final = 1024
_METRICS_BYTES_MAX: Final = 128 << 10
"""Of their names. The daemon has the same bounds, and would refuse more when all is copied."""


class Run:
    """A rank that has joined; every rank calls `prepare` and `save` alike."""

    def __init__(
        self,
        connection: Connection,
        exchange: Exchange,
        member: Membership,
        *,
        timeout_s: float,
        when_full: str = "wait",
        on_failure: OnFailure = "fail",
        on_first: Callable[[], object] = bool,
        overlap: bool = True,
    ) -> None:
        """*on_first* is called once, by rank 0 before its first save.

        It may take `LEAD` of *timeout_s*, for which the other ranks wait meanwhile.
        """
        self._when_full = when_full
        self._failures = Failures(on_failure)
        self._exchange = Watched(exchange)
        self._member = member
        self._planner = Planner(self._exchange)
        self._stager = Stager(connection, member, timeout_s, when_full, overlap=overlap)
        self._on_first = on_first
        self._sequence = 0
        self._saves: list[Save] = []  # whose failure nobody may have heard of
        weakref.finalize(self, failing.tell_untold, str(member.place), self._saves, os.getpid())

    @property
    def place(self) -> Path:
        """Where the checkpoints appear."""
        return self._member.place

    @property
    def ranks_beside(self) -> list[int]:
        """The ranks of this node, this one among them, rising."""
        return self._member.ranks_beside

    @property
    def saves_in_flight(self) -> int:
        """How many saves are staged and not committed."""
        return sum(not save.done() for save in self._saves)

    @property
    def agreed(self) -> Agreed:
        """What was agreed last, for `prepare` or `save`."""
        return self._planner.agreed

    def prepare(self, take: Take) -> None:
        """Agree on the plan of what *take* returns, and make memory ready in the background."""
        self._stager.wait_sealed()
        agreed, local, headers = self._planner.agree(
            take, lambda: {"call": "prepare", "sequence": self._sequence}, is_kept=False
        )
        self._sequence = _next_of(headers)
        self._stager.prepare(agreed, local)

    def save(
        self, take: Take, *, step: int, metrics: Mapping[str, float] | None, on_existing: str
    ) -> Save:
        """Copy what *take* returns out of the training step; return once that is done.

        Raises what is wrong with it on any rank, and what went wrong with an earlier save if
        nobody has heard of it. What the world does to one rank fails the save of all: each raises
        it, or none does.
        """
        started = time.monotonic()
        self._stager.wait_sealed()
        numbers: dict[str, float] = {}
        mine: list[errors.CkptdError] = []

        def header() -> dict[str, Any]:
            self.raise_untold()
            numbers.update(_checked(step, metrics, on_existing))
            room = self._prepared(mine)
            return {
                "call": "save",
                "step": step,
                "world size": self._exchange.world_size,
                "on_existing": on_existing,
                "when_full": self._when_full,
                "sequence": self._sequence,
                "room": room,
                "let_down": failing.told(mine[0]) if mine else None,
                "in_a_row": self._failures.in_a_row,
            }

        try:
            agreed, local, headers = self._planner.agree(take, header)
        except errors.CkptdError as failure:
            met_others = failure is not self._exchange.failure
            if met_others or not self._failures.tolerates_call(failure):
                raise
            return self._failed(step, failure, started)
        plan_s = time.monotonic() - started
        sequence = _next_of(headers)
        self._sequence = sequence + 1
        if (let_down := failing.let_down([each["let_down"] for each in headers])) is not None:
            let_down = mine[0] if mine else let_down
            if not self._failures.tolerates_alike(let_down, [each["in_a_row"] for each in headers]):
                raise let_down
            return self._failed(step, let_down, started)
        rooms = [each["room"] for each in headers]
        if self._when_full == "skip" and (reason := fullness.reason_to_skip(step, rooms)):
            return self._skipped(step, reason, plan_s)
        try:
            save = self._stager.save(
                agreed,
                local,
                sequence=sequence,
                step=step,
                metrics=numbers,
                on_existing=on_existing,
                supersedes=fullness.victim(rooms) if self._when_full == "supersede" else None,
            )
        except errors.CkptdError as failure:
            if not self._failures.tolerates_call(failure):
                raise
            save = self._failed(step, failure, started)
        else:
            self._saves.append(save)
        save.blocked_s, save.plan_s = time.monotonic() - started, plan_s
        return save

    def _prepared(self, let_down: list[errors.CkptdError]) -> fullness.Room | None:
        """Do what comes before the ranks meet; add to *let_down* what the world does to it.

        Nobody raises that before all know of it: a mistake on another rank goes first.
        """
        try:
            self._begin()
            return self._room()
        except failing.TOLERABLE as failure:
            let_down.append(failure)
            return None

    def _failed(self, step: int, failure: errors.CkptdError, started: float) -> Save:
        save = failed(step, failure)
        save.blocked_s = save.plan_s = time.monotonic() - started
        self._saves.append(save)
        return save

    def _room(self) -> fullness.Room | None:
        """Return what this rank's daemon has to say, if it is one of several and that matters."""
        if self._when_full == "wait" or not self._member.daemons:
            return None
        return self._stager.room()

    def _skipped(self, step: int, reason: str, plan_s: float) -> Save:
        save = Save(step)
        save.blocked_s = save.plan_s = plan_s
        save.skip(reason)
        self._saves.append(save)
        return save

    def _begin(self) -> None:
        """Do what comes before the first save; again if it failed."""
        if self._exchange.rank == 0:
            self._on_first()
            self._on_first = bool

    def wait_saved(self, timeout_s: float | None) -> None:
        """Wait until every save in flight has ended, one way or the other."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for save in self._saves:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not save.wait(left_s):
                text = f"step {save.step} is not committed after {timeout_s:g} s; it goes on"
                raise errors.DeadlineExceeded(text)

    def raise_untold(self) -> None:
        """Raise what went wrong with saves that have ended, unless it is tolerated."""
        done = [save for save in self._saves if save.done()]  # looked at once: others end now
        self._saves[:] = [save for save in self._saves if save not in done]  # the finalizer's, too
        self._failures.judge(done)

    def leave(self) -> None:
        """Leave the job; what is in flight goes on."""
        self._stager.close()
        self._member.leave()
        self._exchange.close()


def _next_of(headers: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of this call: a rank that came anew counts from the others' on."""
    return max(int(header["sequence"]) for header in headers)


def _checked(step: int, metrics: Mapping[str, float] | None, on_existing: str) -> dict[str, float]:
    """Return the metrics; raises `InvalidArgument`."""
    if type(step) is not int or not 0 <= step <= _STEP_MAX:
        raise errors.InvalidArgument(f"step is {step!r}; pass an int from 0 to 2^63 - 1")
    if on_existing not in ON_EXISTING:
        text = f'on_existing is {on_existing!r}; pass "error" or "replace"'
        raise errors.InvalidArgument(text)
    numbers: dict[str, float] = {}
    for name, value in (metrics or {}).items():
        try:
            numbers[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            text = f"the metric {name!r} is a {type(value).__name__}; pass a number"
            raise errors.InvalidArgument(text) from error
    size = sum(len(name.encode(errors="surrogatepass")) for name in numbers)
    if len(numbers) > _METRICS_MAX or size > _METRICS_BYTES_MAX:
        text = f"{len(numbers)} metrics with names of {size} bytes in all are too many"
        text = f"{text}; pass up to {_METRICS_MAX} metrics and {_METRICS_BYTES_MAX} bytes"
        raise errors.InvalidArgument(text)
    return numbers
