"""Ranks that meet at their node's daemon, or in a process group, once or twice; one may die."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import ckptd
from ckptd import errors

root, what = Path(sys.argv[1]), sys.argv[2]
rank = int(os.environ["RANK"])
if sys.argv[3:] == ["grouped"]:
    dist.init_process_group("gloo")

with ckptd.Checkpointer(root, experiment="e", run=what, timeout=60) as ckpt:
    shared = torch.arange(5000.0)
    if what == "saves":
        for step in range(2):
            ckpt.save({"shared": shared, f"mine.{rank}": rank, "step": step}, step=step)
    if what == "twice":
        ckpt.save({"shared": shared}, step=0).result(60)
        with ckptd.Checkpointer(root, experiment="e", run=what, timeout=60) as other:
            other.load({"shared": torch.zeros(5000)})
        ckpt.save({"shared": shared}, step=1).result(60)
    if what == "mixes":
        module = torch.nn.Linear(2, 2)
        torch.nn.init.constant_(module.weight, 1 + rank)
        torch.nn.init.zeros_(module.bias)
        ckpt.prepare({"net": module})  # as before a load: what is there is not kept
        try:
            ckpt.save({"net": module}, step=0)
        except errors.InvalidArgument as error:
            sys.stdout.write(f"{error}\n")
        torch.nn.init.ones_(module.weight)
        ckpt.save({"net": module}, step=1).result(60)
        torch.nn.init.constant_(module.weight, rank)
        try:
            ckpt.save({"net": module}, step=2)
        except errors.InvalidArgument as error:
            sys.stdout.write(f"{error}\n")
    if what == "dies" and rank == 1:
        ckpt.save({"shared": shared}, step=0).result(60)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "dies":
        ckpt.save({"shared": shared}, step=0).result(60)
        try:
            ckpt.save({"shared": shared}, step=1)
        except errors.Aborted as error:
            sys.stdout.write(f"{error}\n")
