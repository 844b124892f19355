"""A rank that notes what it has its process groups do: in the call that saves, and after it.

The save is to be held back before, and is committed when its test lets it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import ckptd
from fakes.notes import tell
from fakes.waiting import eventually

TALK = ("gather", "reduce", "scatter", "alltoall", "broadcast", "barrier", "send", "recv", "split")

how, root, notes = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
rank = int(os.environ["RANK"])
said: list[str] = []
behind: list[str] = []
"""What was said by other threads than that of the training."""


def listen(owner: Any, name: str) -> None:
    true = getattr(owner, name)

    def heard(*arguments: Any, **options: Any) -> Any:
        is_training = threading.current_thread() is threading.main_thread()
        (said if is_training else behind).append(name)
        return true(*arguments, **options)

    setattr(owner, name, heard)


def by_a_checkpointer() -> Callable[[int], Any]:
    ckpt = ckptd.Checkpointer(root, experiment="e", run="r")
    return lambda step: ckpt.save(state, step=step)


def by_torchs_calls() -> Callable[[int], Any]:
    run = root / "e" / "r"
    return lambda step: ckptd.dcp.async_save(state, checkpoint_id=run / f"step-{step}")


for name in dir(dist.ProcessGroup):  # whatever speaks to another rank, from Python, goes there
    if any(word in name for word in TALK):
        listen(dist.ProcessGroup, name)
listen(dist, "new_group")

dist.init_process_group("gloo")
state = {"shared": torch.arange(5000.0), f"mine.{rank}": torch.ones(5000)}
save = {"save": by_a_checkpointer, "async_save": by_torchs_calls}[how]()
save(0).result(60)
tell(notes, "ready")
eventually((notes / "held").exists)
said.clear()
saved = save(1)
during = said.copy()
tell(notes, "saved")
saved.result(60)
tell(notes, "told", json.dumps({"during": during, "after": said[len(during) :] + behind}))
dist.destroy_process_group()
