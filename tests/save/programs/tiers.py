"""Two ranks save two steps; the image of rank 1 in the second is damaged, and both load."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

import ckptd

root, on_corrupt = sys.argv[1:]
rank = int(os.environ["RANK"])
mine = f"mine.{rank}"

with ckptd.Checkpointer(root, experiment="e", run="r") as ckpt:
    for step in (1, 2):
        ckpt.save({mine: torch.full((1000,), float(step)), "step": step}, step=step)
if rank == 1:
    image = Path(root, "e/r/step-2/__1_0.distcp")
    image.chmod(0o600)
    with image.open("r+b") as file:
        file.write(b"x" * image.stat().st_size)
with ckptd.Checkpointer(root, experiment="e", run="r") as ckpt:
    state = {mine: torch.zeros(1000), "step": 0}
    try:
        loaded = ckpt.load(state, on_corrupt=on_corrupt)
        same = bool((state[mine] == loaded.step).all()) and state["step"] == loaded.step
        sys.stdout.write(f"loaded {loaded.step} {same}\n")
    except ckptd.errors.DataLoss as failure:
        sys.stdout.write(f"lost {'__1_0.distcp is corrupt' in str(failure)}\n")
