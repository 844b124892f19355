"""The record of a save says how much longer training steps were meanwhile."""

from __future__ import annotations

from pathlib import Path

import torch

import ckptd
from fakes.daemon import Daemon
from fakes.tracing import STALLS, tampered


def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
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
