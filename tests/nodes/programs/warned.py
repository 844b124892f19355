"""A rank in a process group that trains until a node is about to go away, then saves once more."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import ckptd

root, rank = Path(sys.argv[1]), os.environ["RANK"]
dist.init_process_group("gloo")

with ckptd.Checkpointer(root, experiment="e", run="r") as ckpt:
    state = {"x": torch.arange(1000.0)}
    ckpt.save(state, step=0).result(60)
    for step in range(1, 100_000):  # not for ever, if nobody tells
        if step == 10:
            (root / f"{rank}.trains").touch()
        if (notice := ckpt.preempted()) is not None:
            break
    last = ckpt.save(state, step=step).result(60)
sys.stdout.write(f"{last.step} {notice.cause} {notice.left_s}\n")
dist.destroy_process_group()
