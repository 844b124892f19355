from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import ckptd
from ckptd_proto import errors
from fakes import ranks
from fakes.daemon import Daemon

PROGRAMS = Path(__file__).parent / "programs"

pytestmark = pytest.mark.timeout(300)


def model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 1))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    net(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_replicas_shards_and_another_world_size_come_back_bit_equal(
    daemon: Daemon, tmp_path: Path
) -> None:
    root, expected = tmp_path / "root", tmp_path
    net = model(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    train(net, optimizer, 1)
    state = {"model": net, "optimizer": optimizer, "scheduler": scheduler}
    with ckptd.Checkpointer(root, experiment="e", run="alone", socket=daemon.socket) as ckpt:
        ckpt.save(state, step=3)
    torch.save(net.state_dict(), expected / "alone.pt")
    train(net, optimizer, 2)
    torch.save(net.state_dict(), expected / "continued.pt")

    ranks.torchrun(PROGRAMS / "sharded.py", root, expected, ranks=2, env=daemon.env)

    sharded = torch.load(expected / "sharded.pt")
    fresh = model(9)
    fresh_optimizer = torch.optim.AdamW(fresh.parameters())
    state = {"model": fresh, "optimizer": fresh_optimizer}
    with ckptd.Checkpointer(root, experiment="e", run="sharded", socket=daemon.socket) as ckpt:
        path = ckpt.load(state).path
    assert all(torch.equal(sharded[name], weight) for name, weight in fresh.state_dict().items())
    assert fresh_optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    stock = [sys.executable, str(PROGRAMS / "stock.py"), str(path), str(expected / "sharded.pt")]
    done = subprocess.run(stock, capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr


def test_ranks_without_a_process_group_save_through_the_daemon(
    daemon: Daemon, tmp_path: Path
) -> None:
    started = ranks.start(PROGRAMS / "meeting.py", tmp_path, "saves", ranks=2, env=daemon.env)
    ranks.outputs(started)
    with ckptd.Checkpointer(
        tmp_path, experiment="e", run="saves", ranks="self", socket=daemon.socket
    ) as ckpt:
        state = {"shared": torch.zeros(5000), "mine.0": None, "mine.1": None, "step": None}
        assert ckpt.load(state).step == 1
    assert torch.equal(state["shared"], torch.arange(5000.0))
    assert (state["mine.0"], state["mine.1"], state["step"]) == (0, 1, 1)


def test_a_second_checkpointer_of_the_run_leaves_the_first_alone(
    daemon: Daemon, tmp_path: Path
) -> None:
    started = ranks.start(PROGRAMS / "meeting.py", tmp_path, "twice", ranks=2, env=daemon.env)
    ranks.outputs(started)
    assert (tmp_path / "e" / "twice" / "step-1").exists()


def test_ranks_whose_weights_differ_are_refused_until_they_agree(
    daemon: Daemon, tmp_path: Path
) -> None:
    started = ranks.start(PROGRAMS / "meeting.py", tmp_path, "mixes", ranks=2, env=daemon.env)
    for said in ranks.outputs(started):
        assert said.count("'net.weight' differs between rank 0 and rank 1") == 2, said
    with ckptd.Checkpointer(
        tmp_path, experiment="e", run="mixes", ranks="self", socket=daemon.socket
    ) as ckpt:
        latest = ckpt.latest()
    assert latest is not None
    assert latest.step == 1


@pytest.mark.parametrize("way", ["grouped", "ungrouped"])
def test_a_rank_that_dies_before_the_exchange_is_named_to_the_others(
    daemon: Daemon, tmp_path: Path, way: str
) -> None:
    started = ranks.start(PROGRAMS / "meeting.py", tmp_path, "dies", way, ranks=2, env=daemon.env)
    said = ranks.outputs(started)
    assert f"rank 1 (pid {started[1].pid}) died" in said[0]


def test_other_ranks_that_cannot_be_reached_are_an_error(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(errors.FailedPrecondition, match="init_process_group"):
        ckptd.Checkpointer(tmp_path, experiment="e", run="r", socket=daemon.socket)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(errors.FailedPrecondition, match="several nodes"):
        ckptd.Checkpointer(tmp_path, experiment="e", run="r", socket=daemon.socket)
