"""A save that the world lets down is warned of, if its user says so, on every rank alike."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptd
from ckptd import errors
from ckptd.link.connection import Connection
from ckptd.saving.failing import OnFailure
from ckptd.saving.membership import Membership
from ckptd.saving.run import Run
from ckptd.tensors.local import take
from fakes import ranks
from fakes.daemon import Daemon
from fakes.training import opened
from fakes.waiting import eventually

PROGRAMS = Path(__file__).parent / "programs"
STATE = {"w": torch.ones(1000)}
LATE = errors.DeadlineExceeded("it has not answered")


class Two:
    """Rank 0 of a world of two, in which the other rank says the same but for what a test changes."""

    rank = 0
    world_size = 2

    def __init__(self) -> None:
        self.theirs: dict[str, Any] = {}
        """What the other rank says otherwise in its header."""
        self.their_error: dict[str, str] | None = None
        """What it raises."""
        self.failure: errors.CkptdError | None = None
        """What becomes of the exchange itself."""

    def begin(self) -> None:
        """The other rank is always there."""

    def all_gather(self, payload: bytes) -> list[bytes]:
        if self.failure is not None:
            raise self.failure
        if not payload.startswith(b"{"):
            return [payload, payload]  # a plan
        heard = json.loads(payload)
        if self.their_error is not None:
            return [payload, json.dumps(self.their_error).encode()]
        if "said" in heard and "header" in heard["said"]:
            heard["said"]["header"] = heard["said"]["header"] | self.theirs
        return [payload, json.dumps(heard).encode()]

    def close(self) -> None:
        """Nothing is held."""


class Job:
    """A run whose other rank is what the test makes of it, and what comes before its first save."""

    def __init__(self, daemon: Daemon, root: Path, on_failure: OnFailure) -> None:
        self.other = Two()
        self.before: list[Callable[[], None]] = []
        connection = Connection.open(daemon.socket)
        member = Membership.join(connection, self.other, root, "e", "r")
        self._run = Run(
            *(connection, self.other, member),
            timeout_s=60,
            on_failure=on_failure,
            on_first=lambda: [each() for each in self.before],
        )

    def save(self, step: Any = 1) -> ckptd.Save:
        return self._run.save(partial(take, STATE), step=step, metrics=None, on_existing="error")


def fail() -> None:
    raise LATE


def told(failure: errors.CkptdError) -> dict[str, str]:
    return {"error": type(failure).__name__, "message": str(failure)}


@pytest.fixture
def job(daemon: Daemon, tmp_path: Path) -> Callable[[OnFailure], Job]:
    return partial(Job, daemon, tmp_path)


def test_a_first_save_that_a_silent_daemon_lets_down_is_warned_of_and_the_next_has_its_rules(
    daemon: Daemon, tmp_path: Path
) -> None:
    rules = ckptd.Retention(latest=1)
    with opened(daemon, tmp_path, retention=rules, on_failure="warn", timeout=8) as ckpt:
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            with pytest.warns(ckptd.SaveFailed, match=r"the training goes on: .* has not answered"):
                save = ckpt.save(STATE, step=1)
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        assert save.done()
        with pytest.raises(errors.DeadlineExceeded):
            save.result()
        for step in (2, 3):
            ckpt.save(STATE, step=step).result(60)
        eventually(lambda: not (tmp_path / "e" / "r" / "step-2").exists())


def test_rules_that_were_not_taken_are_told_again_by_the_next_save(
    job: Callable[[OnFailure], Job],
) -> None:
    warned = job("warn")
    asked = []
    warned.before = [lambda: asked.append(1), fail]
    for _ in range(2):
        with pytest.warns(ckptd.SaveFailed):
            warned.save()
    assert len(asked) == 2


def test_what_lets_one_rank_down_fails_the_save_of_every_rank(
    job: Callable[[OnFailure], Job],
) -> None:
    warned = job("warn")
    warned.other.theirs = {"let_down": told(LATE)}
    with pytest.warns(ckptd.SaveFailed, match="rank 1: it has not answered"):
        save = warned.save()
    with pytest.raises(errors.DeadlineExceeded):
        save.result(0)
    strict = job("fail")
    strict.other.theirs = {"let_down": told(LATE)}
    with pytest.raises(errors.DeadlineExceeded, match="rank 1: it has not answered"):
        strict.save()


def test_a_number_of_failures_is_one_too_many_on_all_ranks_at_once(
    job: Callable[[OnFailure], Job],
) -> None:
    counted = job(2)
    counted.other.theirs = {"let_down": told(LATE)}
    with pytest.warns(ckptd.SaveFailed):
        counted.save()
    other = job(2)
    other.other.theirs = {"let_down": told(LATE), "in_a_row": 1}  # it has heard of one before us
    for each in (counted, other):
        with pytest.raises(errors.DeadlineExceeded) as raised:
            each.save()
        assert raised.value.__notes__ == ["2 saves failed one after another"]


def test_a_mistake_on_one_rank_is_raised_on_all_though_the_world_lets_others_down(
    job: Callable[[OnFailure], Job],
) -> None:
    ours = job("warn")
    ours.before = [fail]
    ours.other.their_error = told(errors.InvalidArgument("no such step"))
    with pytest.raises(errors.InvalidArgument, match="rank 1: no such step"):
        ours.save()
    theirs = job("warn")
    theirs.other.theirs = {"let_down": told(LATE)}
    with pytest.raises(errors.InvalidArgument, match="step is -1"):
        theirs.save(-1)


@pytest.mark.parametrize("kind", [errors.DeadlineExceeded, errors.Aborted, errors.Unavailable])
def test_ranks_that_do_not_meet_are_warned_of(
    job: Callable[[OnFailure], Job], kind: type[errors.CkptdError]
) -> None:
    for policy in ("warn", 2):
        warned = job(policy)
        warned.other.failure = kind("rank 1 did not come")
        with pytest.warns(ckptd.SaveFailed, match="rank 1 did not come"):
            assert warned.save().done()
    with pytest.raises(kind):
        warned.save()
    strict = job("fail")
    strict.other.failure = kind("rank 1 did not come")
    with pytest.raises(kind):
        strict.save()


def test_a_mistake_is_raised_though_the_other_ranks_cannot_be_told(
    job: Callable[[OnFailure], Job],
) -> None:
    warned = job("warn")
    warned.other.failure = LATE
    with pytest.raises(errors.InvalidArgument, match="step is -1") as raised:
        warned.save(-1)
    assert "could not be told: it has not answered" in raised.value.__notes__[0]


def test_what_another_rank_raises_is_raised_of_whatever_kind(
    job: Callable[[OnFailure], Job],
) -> None:
    warned = job("warn")
    warned.other.their_error = told(errors.Aborted("3 saves failed"))
    with pytest.raises(errors.Aborted, match="rank 1: 3 saves failed"):
        warned.save()


@pytest.mark.timeout(300)
def test_ranks_that_missed_each_other_save_on_and_leave_nothing_half_done(
    daemon: Daemon, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    started = ranks.start(PROGRAMS / "late.py", tmp_path / "root", notes, ranks=2, env=daemon.env)
    said = [text.split("\n") for text in ranks.outputs(started)]
    first, second = ([line[5:] for line in lines if line.startswith("told ")] for lines in said)
    for said in (first, second):
        assert said[0].startswith("1 DeadlineExceeded: ")
        assert said[1] == "2 committed: 2"
        assert said[3] == "4 committed: 4"
    assert first[2].startswith("3 DeadlineExceeded: ranks 1 of 2 did not come to ")
    assert second[2].startswith("3 Aborted: rank 0 (pid ")
    assert "went on without staging step 3" in second[2]
