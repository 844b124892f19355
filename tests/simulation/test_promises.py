"""The protocol of several nodes keeps its promises, whatever happens when; and it is cheap.

`CKPTD_SIM_SEEDS=10000` tries so many, `CKPTD_SIM_S=60` for a minute; `CKPTD_SIM_SEED=4711` tries
that one again.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from ckptd_daemon.save.attempts import Checkpoint, Image
from ckptd_daemon.save.commit import manifests
from ckptd_daemon.save.commit.proof import Receipt
from ckptd_daemon.save.nodes import operations as ops
from ckptd_daemon.save.nodes.protocol import Course, Outcome
from ckptd_daemon.save.nodes.receipts import Delivery
from ckptd_proto import errors
from simulation.promises import Broken
from simulation.world import World

SEEDS = 300
MUTANT_SEEDS = 3000
FOUND_SOMETHING = [102, 435, 528, 1351, 1356, 1426, 1539, 1779, 1875, 2017, 2641]
"""Nodes that decided by names they only remembered: a note unseen, a step committed and denied."""


def seeds() -> Iterator[int]:
    """Some, as many as wanted, or a minute's worth; each time others."""
    if seed := os.environ.get("CKPTD_SIM_SEED"):
        yield int(seed)
        return
    until = time.monotonic() + float(os.environ.get("CKPTD_SIM_S", "0"))
    least = int(os.environ.get("CKPTD_SIM_SEEDS", SEEDS))
    for number, seed in enumerate(count(random.randrange(1 << 40))):
        if number >= least and time.monotonic() >= until:
            return
        yield seed


def broken_by(seed: int, course: type[Course] = Course) -> str:
    try:
        World(seed, course=course).run()
    except Broken as broken:
        return str(broken)
    return ""


@pytest.mark.timeout(3600)
def test_no_seed_breaks_a_promise() -> None:
    for seed in seeds():
        broken = broken_by(seed)
        assert not broken, f"{broken}\nagain: CKPTD_SIM_SEED={seed} pytest tests/simulation"


@pytest.mark.parametrize("seed", FOUND_SOMETHING)
def test_what_broke_a_promise_once_does_not_any_more(seed: int) -> None:
    assert not broken_by(seed)


def test_saves_come_to_both_ends_under_faults() -> None:
    ends = set()
    for seed in range(20):
        world = World(seed)
        world.run()
        ends |= {type(outcome) for told in world.promises.told.values() for _, outcome in told}
    assert {Checkpoint, errors.Aborted} < ends


@pytest.mark.parametrize("seed", range(10))
def test_without_faults_every_save_is_committed_or_was_not_allowed(seed: int) -> None:
    world = World(seed, has_faults=False)
    world.run()
    for told in world.promises.told.values():
        for _, outcome in told:
            assert isinstance(
                outcome, Checkpoint | errors.AlreadyExists | errors.FailedPrecondition
            )
    assert world.promises.committed


class GivesUpByWordAlone(Course):
    """The attempt's directory stays where a late commit finds it."""

    def give_up(self, why: Outcome) -> ops.Steps[Outcome]:
        yield from self._insist(ops.Write(self._note, b"{}"))
        return why


class CommitsWithoutTheLast(Course):
    """It does not wait for everybody's receipt."""

    def _collect(self, deliveries: list[Delivery]) -> ops.Steps[Outcome | None]:
        outcome = yield from super()._collect(deliveries)
        names = self._members.names
        if outcome is None and len(deliveries) == len(names) - 1:
            deliveries.append(Delivery(names[-1], (), None, {}))
        return outcome

    def _proven(self, deliveries: list[Delivery]) -> bytes:
        return manifests.encode(self._attempt, {})


class DeliversBeforeItPersists(Course):
    """The receipt is there before the images are."""

    def deliver(self) -> ops.Steps[Outcome | None]:
        yield from self._appear()
        own = self._members.own
        early = Receipt(Image(f"__{own}_0.distcp", 1), "p", "sums", 1)
        yield from self._insist(ops.Write(self._receipt_of(own), self._delivery((early,))))
        return (yield from super().deliver())


class BelievesItsOwnWord(Course):
    """Who gives up does not look whether the step was committed meanwhile."""

    def give_up(self, why: Outcome) -> ops.Steps[Outcome]:
        yield from self._insist(ops.Rename(self.directory, self._beside(f".{self._token()}.gone")))
        return why


class AnybodyReplaces(Course):
    """Two may replace the same step, each by the same exchange."""

    def _turn_s(self) -> float:
        return 0.0


class TakesTheStepForItsOwn(Course):
    """Whatever has the name of the step is taken for this attempt's work."""

    def _committed(self) -> ops.Steps[Checkpoint | None]:
        data = yield from self._insist(ops.Read(self._step / "manifest.json"))
        return None if data is None else manifests.decode(data, self._place)


class DoesNotLookAgain(Course):
    """What this node remembers of names is good enough."""

    def _look_again(self, directory: Path) -> ops.Steps[None]:
        yield from ()


class LooksAgainAtStepsAlone(Course):
    """What this node remembers of attempts and notes is good enough."""

    def _look_again(self, directory: Path) -> ops.Steps[None]:
        if directory == self._place.directory:
            yield from super()._look_again(directory)


class LooksAgainAtAttemptsAlone(Course):
    """What this node remembers of steps is good enough."""

    def _look_again(self, directory: Path) -> ops.Steps[None]:
        if directory != self._place.directory:
            yield from super()._look_again(directory)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "mutant",
    [
        GivesUpByWordAlone,
        CommitsWithoutTheLast,
        DeliversBeforeItPersists,
        BelievesItsOwnWord,
        AnybodyReplaces,
        TakesTheStepForItsOwn,
        DoesNotLookAgain,
        LooksAgainAtStepsAlone,
        LooksAgainAtAttemptsAlone,
    ],
)
def test_a_protocol_without_one_of_its_guards_is_found_out(mutant: type[Course]) -> None:
    assert any(broken_by(seed, mutant) for seed in range(MUTANT_SEEDS)), mutant.__doc__


def test_a_node_that_remembers_names_for_a_minute_hears_as_soon_as_others() -> None:
    def ended_at(lag_s: float) -> float:
        world = World(1, nodes=4, has_faults=False, lag_s=lag_s)
        world.run(attempts=1)
        assert world.promises.committed
        return world.ended_at

    assert ended_at(60.0) < ended_at(0.0) + 5


def test_a_thousand_nodes_cost_each_about_what_two_do() -> None:
    def calls(size: int) -> list[int]:
        world = World(1, nodes=size, has_faults=False)
        world.run(attempts=1)
        assert [len(told) for told in world.promises.told.values()] == [size]
        return sorted(node.calls for node in world.nodes)

    few, many = calls(2), calls(1000)
    assert many[-1] < 1000 + 200, "who commits reads each receipt once"
    assert many[-4] < few[-1] + 70, "the others, but for who takes over, look at a name or two"
