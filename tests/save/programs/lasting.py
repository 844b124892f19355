"""A rank that trains little and saves often; rank 0 says what it and the daemon hold, twice."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn

import ckptd
from fakes.usage import anon_bytes, descriptors
from fakes.waiting import eventually

SPARE = 2  # descriptors that come and go

root, daemon = Path(sys.argv[1]), int(sys.argv[2])
saves, settled = int(sys.argv[3]), int(sys.argv[4])

torch.set_num_threads(1)
distributed.init_process_group("gloo")
torch.manual_seed(1)
base = nn.Linear(256, 256).requires_grad_(False)
heads = nn.ModuleList(nn.Linear(16, 16) for _ in range(60))
optimizer = torch.optim.SGD(heads.parameters(), lr=0.01)
state = {"base": base, "heads": heads, "optimizer": optimizer}


def train() -> None:
    torch.stack([head(torch.ones(1, 16)).sum() for head in heads]).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def usage() -> list[dict[str, int]]:
    pids = os.getpid(), daemon
    return [{"anon": anon_bytes(pid), "descriptors": descriptors(pid)} for pid in pids]


def is_at_rest() -> bool:
    """Say whether the daemon has let go of what it opens for a moment, after a commit."""
    return not said or usage()[1]["descriptors"] <= said[0][1]["descriptors"] + SPARE


said: list[list[dict[str, int]]] = []
with ckptd.Checkpointer(
    root, experiment="e", run="r", retention=ckptd.Retention(latest=3)
) as checkpoints:
    for step in range(saves):
        train()
        save = checkpoints.save(state, step=step)
        if step in {settled, saves - 1}:
            save.result(60)
            distributed.barrier()
            eventually(is_at_rest)
            said.append(usage())
distributed.destroy_process_group()
sys.stdout.write(json.dumps(said) + "\n")
