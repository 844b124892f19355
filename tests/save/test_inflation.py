"""The record of a save says how much longer training steps were meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ckptd
from ckptd.saving import steps
from fakes.daemon import Daemon
from fakes.tracing import STALLS, tampered
from fakes.waiting import eventually


def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        net(torch.ones(1, 64)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_steps_beside_a_save_are_compared_with_those_before_it(
    daemon: Daemon, tmp_path: Path
) -> None:
    net = torch.nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(net.parameters())
    state = {"net": net, "optimizer": optimizer}
    with ckptd.Checkpointer(
        tmp_path, experiment="e", run="r", ranks="self", socket=daemon.socket
    ) as ckpt:
        ckpt.prepare(state)
        first = ckpt.save(state, step=0)
        first.result(timeout=60)
        train(net, optimizer, 20)
        with tampered(daemon.pid, f"fallocate:{STALLS}"):
            save = ckpt.save(state, step=20)
            train(net, optimizer, 20)
        save.result(timeout=60)
        assert first.record is not None
        assert first.record.step_inflation is None, "nobody knew how long steps take"
        assert save.record is not None
        assert save.record.step_inflation is not None
        assert len(optimizer._optimizer_step_post_hooks) == 1
    assert len(optimizer._optimizer_step_post_hooks) == 0


class Clock:
    """What the steps are timed by; it stands still unless it is told otherwise."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(steps, "time", one)
    return one


def is_over(save: ckptd.Save) -> bool:
    """Say whether the steps that come now are none of those beside the save."""
    return save.steps is not None and not save.steps.is_open


def test_the_record_says_by_how_much_the_median_step_was_longer(
    daemon: Daemon, tmp_path: Path, clock: Clock
) -> None:
    net = torch.nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(net.parameters())
    state = {"net": net, "optimizer": optimizer}

    def step(*durations_s: float) -> None:
        for duration_s in durations_s:
            clock.now_s += duration_s
            train(net, optimizer, 1)

    with ckptd.Checkpointer(
        tmp_path, experiment="e", run="r", ranks="self", socket=daemon.socket
    ) as ckpt:
        ckpt.prepare(state)
        step(4.0, 4.0, 4.0, 4.0)  # before anything listens
        first = ckpt.save(state, step=0)
        first.result(timeout=60)
        eventually(lambda: is_over(first))
        step(2.0, 2.0, 2.0, 2.0, 60.0, 2.0)
        with tampered(daemon.pid, f"fallocate:{STALLS}"):
            beside = ckpt.save(state, step=20)
            step(3.0, 3.0, 3.0, 90.0, 3.0)
            assert beside.record is None, "it is not over"
        beside.result(timeout=60)
        eventually(lambda: is_over(beside))
        step(500.0, 500.0, 500.0, 500.0, 500.0, 500.0)
    assert beside.record is not None
    assert beside.record.step_inflation == pytest.approx(0.5)
