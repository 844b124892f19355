"""How much longer steps take while a save is on its way."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch

from ckptd.saving import steps
from ckptd.saving.steps import StepClock


class Training:
    """One whose steps take as long as they are told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(steps.time, "perf_counter", lambda: self.now_s)
        self.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        self.clock = StepClock()
        self.clock.watch({"optimizer": self.optimizer})

    def step(self, *durations_s: float) -> None:
        for duration_s in durations_s:
            self.now_s += duration_s
            self.optimizer.step()


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Training:
    return Training(monkeypatch)


def hooks(optimizer: torch.optim.Optimizer) -> int:
    return len(optimizer._optimizer_step_post_hooks)


def test_it_is_the_median_step_during_a_save_beside_the_median_before_it(
    training: Training,
) -> None:
    training.step(9.0, 1.0, 1.0, 1.0, 60.0)  # nobody knows when the first began; one evaluates
    window = training.clock.begin()
    training.step(1.2, 1.3, 1.2, 5.0, 1.2)
    window.close()
    training.step(0.2, 0.2, 0.2)
    assert window.inflation == pytest.approx(0.2)


def test_the_step_in_which_a_save_ends_belongs_to_neither_side(training: Training) -> None:
    training.step(1.0, 1.0, 1.0, 1.0)
    window = training.clock.begin()
    training.step(2.0, 2.0, 2.0)
    window.close()
    training.step(500.0, 1.0, 1.0)
    later = training.clock.begin()
    training.step(3.0, 3.0, 3.0)
    assert (window.inflation, later.inflation) == (1.0, 2.0)
    assert 500.0 not in training.clock._usual


def test_what_lies_between_a_step_and_a_save_is_no_step(training: Training) -> None:
    training.step(1.0, 1.0, 1.0, 1.0)
    training.now_s += 700.0
    training.clock.watch({"optimizer": training.optimizer})  # as save() begins
    training.now_s += 50.0
    window = training.clock.begin()  # and ends
    training.step(1.5, 1.5, 1.5)
    assert window.inflation == 0.5


def test_saves_side_by_side_see_the_same_steps(training: Training) -> None:
    training.step(1.0, 1.0, 1.0, 1.0)
    one = training.clock.begin()
    training.step(2.0, 2.0, 2.0)
    other = training.clock.begin()
    training.step(4.0, 4.0, 4.0, 4.0)
    assert (one.inflation, other.inflation) == (3.0, 3.0)


def test_too_few_steps_tell_nothing(training: Training) -> None:
    training.step(1.0, 1.0, 1.0, 1.0)
    window = training.clock.begin()
    training.step(2.0, 2.0)
    assert window.inflation is None
    fresh = StepClock()
    fresh.watch({"optimizer": training.optimizer})
    window = fresh.begin()
    training.step(2.0, 2.0, 2.0)
    assert window.inflation is None  # the usual time is not known


def test_of_several_optimizers_the_first_stands_for_all_and_each_is_listened_to_once() -> None:
    made = [torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1) for _ in range(3)]
    clock = StepClock()
    for _ in range(5):
        clock.watch({"nets": {"a": torch.nn.Linear(1, 1)}, "optimizers": made[:2]})
    assert [hooks(one) for one in made] == [1, 0, 0]
    clock.watch({"optimizer": made[2]})
    assert [hooks(one) for one in made] == [0, 0, 1]
    clock.close()
    assert [hooks(one) for one in made] == [0, 0, 0]


@pytest.mark.parametrize("state", [{}, {"x": torch.zeros(1)}, {"l": [0] * 1000}, "no dict", None])
def test_a_state_without_an_optimizer_tells_nothing(state: Any) -> None:
    clock = StepClock()
    clock.watch(state)
    assert clock.begin().inflation is None


def test_a_state_that_contains_itself_is_left_to_those_who_say_so() -> None:
    state: dict[str, Any] = {}
    state["again"] = state
    StepClock().watch(state)


def test_an_optimizer_that_wraps_another_and_has_no_hooks_is_left_alone() -> None:
    class Wrapper(torch.optim.Optimizer):
        def __init__(self) -> None:
            pass

    StepClock().watch({"optimizer": Wrapper()})


def test_nothing_is_held_and_nothing_is_left_behind(training: Training) -> None:
    for _ in range(1000):
        training.clock.begin().close()
        training.step(1.0)
    assert len(training.clock._windows) <= 1
    copied = copy.deepcopy(training.optimizer)
    assert hooks(copied) == 0
    known = weakref.ref(training.optimizer)
    training.clock._hook, hook = None, training.clock._hook
    del copied, hook
    training.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    gc.collect()
    assert known() is None, "the clock keeps no optimizer alive"
