"""Two ranks that do not meet in time for a save, and warn of it; then they save on.

Each says in a file of its own what has become of its saves.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch

import ckptd
from ckptd import errors
from fakes.notes import tell
from fakes.waiting import eventually

root, notes = Path(sys.argv[1]), Path(sys.argv[2])
rank = int(os.environ["RANK"])
warnings.simplefilter("ignore", ckptd.SaveFailed)


def wait_for(name: str) -> None:
    eventually(lambda: (notes / name).exists(), 60)


def save(ckpt: ckptd.Checkpointer, step: int, *, is_missed: bool = False) -> ckptd.Save:
    """Save; if the ranks are to miss each other, rank 1 comes when rank 0 waits no more."""
    exchange = ckpt._run._exchange._exchange
    assert hasattr(exchange, "_timeout_s")
    exchange._timeout_s = 0.5 if is_missed else 60.0
    if is_missed and rank == 1:
        wait_for(f"saved-{step}.0")
    made = ckpt.save({"w": torch.arange(5000.0), "step": step}, step=step)
    tell(notes, f"saved-{step}", made.step)
    wait_for(f"saved-{step}.{1 - rank}")
    return made


with ckptd.Checkpointer(root, experiment="e", run="r", on_failure="warn") as ckpt:
    saves = [
        save(ckpt, 1, is_missed=True),  # rank 1 goes on to the plan, and waits there
        save(ckpt, 2),
        save(ckpt, 3, is_missed=True),  # rank 1 has the plan, and opens it alone
        save(ckpt, 4),
    ]
    told = []
    for each in saves:
        try:
            told.append(f"{each.step} committed: {each.result(60).step}")
        except errors.CkptdError as error:
            told.append(f"{each.step} {type(error).__name__}: {error}")
sys.stdout.write("".join(f"told {line}\n" for line in told))
