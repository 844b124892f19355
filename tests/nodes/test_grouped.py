"""Ranks in a process group, each with the daemon of another node."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ckptd
from fakes import ranks
from fakes.daemon import Daemon

PROGRAM = Path(__file__).parents[1] / "save" / "programs" / "meeting.py"


@pytest.mark.timeout(300)
def test_a_checkpointer_saves_across_nodes_and_one_node_loads_it(
    short_path: Path, tmp_path: Path
) -> None:
    with Daemon(short_path / "a") as one, Daemon(short_path / "b") as other:
        sockets = [one.socket, other.socket]
        started = ranks.start(
            PROGRAM, tmp_path, "saves", "grouped", ranks=2, env=one.env, sockets=sockets
        )
        ranks.outputs(started)
        with ckptd.Checkpointer(
            tmp_path, experiment="e", run="saves", ranks="self", socket=other.socket
        ) as ckpt:
            state = {"shared": torch.zeros(5000), "mine.0": None, "mine.1": None, "step": None}
            assert ckpt.load(state).step == 1
        assert torch.equal(state["shared"], torch.arange(5000.0))
        assert (state["mine.0"], state["mine.1"]) == (0, 1)
