"""The protocol of several nodes keeps its promises, whatever happens when; and it is cheap.

`CKPTD_SIM_S=60` tries for a minute; `CKPTD_SIM_SEED=4711` tries that one again.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import pytest

from ckptd_daemon.save.attempts import Checkpoint, Image
from ckptd_daemon.save.commit import manifests
from ckptd_daemon.save.commit.proof import Receipt
from ckptd_daemon.save.nodes import operations as ops
from ckptd_daemon.save.nodes.protocol import Course, Outcome
from ckptd_daemon.save.nodes.receipts import Delivery
from ckptd_proto import errors
from simulation.world import Broken, World

SEEDS = 300
MUTANT_SEEDS = 800


def seeds() -> Iterator[int]:
    """Some, or a minute's worth, each time others."""
    if seed := os.environ.get("CKPTD_SIM_SEED"):
        yield int(seed)
        return
    until = time.monotonic() + float(os.environ.get("CKPTD_SIM_S", "0"))
    first = random.randrange(1 << 40)
    yield from range(first, first + SEEDS)
    while time.monotonic() < until:
        first += SEEDS
        yield first


def broken_by(seed: int, course: type[Course] = Course) -> str:
    try:
        World(seed, course=course).run()
    except Broken as broken:
        return str(broken)
    return ""


@pytest.mark.timeout(300)
def test_no_seed_breaks_a_promise() -> None:
    for seed in seeds():
        broken = broken_by(seed)
        assert not broken, f"{broken}\nagain: CKPTD_SIM_SEED={seed} pytest tests/simulation"


def test_saves_come_to_both_ends_under_faults() -> None:
    ends = set()
    for seed in range(20):
        world = World(seed)
        world.run()
        ends |= {type(outcome) for told in world.told.values() for _, outcome in told}
    assert {Checkpoint, errors.Aborted} < ends


@pytest.mark.parametrize("seed", range(10))
def test_without_faults_every_save_is_committed_or_was_not_allowed(seed: int) -> None:
    world = World(seed, has_faults=False)
    world.run()
    for told in world.told.values():
        for _, outcome in told:
            assert isinstance(
                outcome, Checkpoint | errors.AlreadyExists | errors.FailedPrecondition
            )
    assert world.committed


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
        return self._timing.takeover_s * self._members.own / 100


class TakesTheStepForItsOwn(Course):
    """Whatever has the name of the step is taken for this attempt's work."""

    def _committed(self) -> ops.Steps[Checkpoint | None]:
        data = yield from self._insist(ops.Read(self._step / "manifest.json"))
        return None if data is None else manifests.decode(data, self._place)


@pytest.mark.parametrize(
    "mutant",
    [
        GivesUpByWordAlone,
        CommitsWithoutTheLast,
        DeliversBeforeItPersists,
        BelievesItsOwnWord,
        AnybodyReplaces,
        TakesTheStepForItsOwn,
    ],
)
def test_a_protocol_without_one_of_its_guards_is_found_out(mutant: type[Course]) -> None:
    assert any(broken_by(seed, mutant) for seed in range(MUTANT_SEEDS)), mutant.__doc__


def test_a_thousand_nodes_cost_each_about_what_two_do() -> None:
    def calls(size: int) -> list[int]:
        world = World(1, nodes=size, has_faults=False)
        world.run(attempts=1)
        assert [len(told) for told in world.told.values()] == [size]
        return sorted(node.calls for node in world.nodes)

    few, many = calls(2), calls(1000)
    assert many[-1] < 1000 + 100, "who commits reads each receipt once"
    assert many[-4] < few[-1] + 20, "the others, but for who takes over, look at one name"
