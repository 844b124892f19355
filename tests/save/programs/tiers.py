"""Two ranks save two steps; each copy of rank 1's image in the second is bad, and both load."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

import ckptd
from ckptd.link.connection import Connection
from ckptd.saving import memory

root, on_corrupt = sys.argv[1:]
rank = int(os.environ["RANK"])
mine = f"mine.{rank}"

with ckptd.Checkpointer(root, experiment="e", run="r") as ckpt:
    for step in (1, 2):
        save = ckpt.save({mine: torch.full((1000,), float(step)), "step": step}, step=step)
    uuid = save.result(60).uuid
if rank == 1:
    image = Path(root, "e/r/step-2/__1_0.distcp")
    image.chmod(0o600)
    with image.open("r+b") as file:
        file.write(b"x" * image.stat().st_size)
    memory.quarantine(Connection.open(), uuid, image.name, "so that it is not read there")
with ckptd.Checkpointer(root, experiment="e", run="r") as ckpt:
    state = {mine: torch.zeros(1000), "step": 0}
    try:
        loaded = ckpt.load(state, on_corrupt=on_corrupt)
        same = bool((state[mine] == loaded.step).all()) and state["step"] == loaded.step
        sys.stdout.write(f"loaded {loaded.step} {same}\n")
    except ckptd.errors.DataLoss as failure:
        sys.stdout.write(f"lost {'__1_0.distcp is corrupt' in str(failure)}\n")
