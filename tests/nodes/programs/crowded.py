"""A rank in a process group that saves faster than its node's disk, then says what became of each.

Once for each policy; it is told when the disk is slow, and tells when it has made its saves.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

import ckptd

root, rank = Path(sys.argv[1]), os.environ["RANK"]
dist.init_process_group("gloo")


def wait(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.01)


def state(step: int) -> dict[str, object]:
    return {"shared": torch.arange(50_000.0) + step, f"mine.{rank}": int(rank)}


def fate(save: ckptd.Save) -> str:
    save.wait(60)
    if save.superseded_by is not None:
        return f"{save.step} superseded by {save.superseded_by}"
    what = "committed" if save.failure is None else str(save.failure)
    return f"{save.step} {'skipped' if save.skipped else what}"


def crowd(when_full: Literal["skip", "supersede"]) -> str:
    with ckptd.Checkpointer(root, experiment="e", run=when_full, when_full=when_full) as ckpt:
        ckpt.prepare(state(0))
        saves = [ckpt.save(state(0), step=0)]
        saves[0].result(60)
        (root / f"{when_full}.{rank}.ready").touch()
        wait((root / f"{when_full}.slow").exists)
        saves.append(ckpt.save(state(1), step=1))
        wait(lambda: list(root.glob(f"e/{when_full}/.attempts/1-*/.*/__1_0.distcp")))
        saves += [ckpt.save(state(step), step=step) for step in (2, 3)]
        (root / f"{when_full}.{rank}.saved").touch()
        for save in saves:
            save.wait(60)
        saves.append(ckpt.save(state(4), step=4))
        return ", ".join(map(fate, saves))


sys.stdout.write(f"{crowd('skip')}\n{crowd('supersede')}\n")
dist.destroy_process_group()
