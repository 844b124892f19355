"""A rank that saves and then does nothing: a test ends it, or its daemon.

Says `saved` once `save()` has returned, and what `result()` gave, in files of its own.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

import ckptd
from fakes.notes import tell

root, what, notes = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
rank = int(os.environ.get("RANK", "0"))


class Dying:
    """A part of the state in whose midst the process ends."""

    def state_dict(self) -> dict[str, Any]:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"x": 1}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


def weights() -> torch.Tensor:
    return torch.randn(100_000, generator=torch.Generator().manual_seed(1))


def survive(ckpt: ckptd.Checkpointer) -> None:
    (notes / f"go.{rank}").read_text()  # a pipe: until the test says so
    save = ckpt.save({"w": weights(), f"mine.{rank}": rank}, step=8)
    tell(notes, "saved", os.getpid())
    tell(notes, "result", save.result(50).step)
    signal.pause()


def die_between(ckpt: ckptd.Checkpointer) -> None:
    """Rank 1 dies after its part is open and before it is sealed."""
    if rank == 1:
        ckpt._run._stager._reserve = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment,return-value]  # there is no other way in
    try:
        ckpt.save({"w": weights(), f"mine.{rank}": torch.ones(1000)}, step=8).result(50)
    except ckptd.errors.Aborted as error:
        tell(notes, "refused", error)


def die_within(ckpt: ckptd.Checkpointer) -> None:
    """Rank 1 dies while it is asked for its state."""
    try:
        ckpt.save({"w": weights(), "d": Dying()}, step=8).result(50)
    except ckptd.errors.Aborted as error:
        tell(notes, "refused", error)


def feed(ckpt: ckptd.Checkpointer) -> None:
    """Workers are forked while saves are on their way, and live on."""
    kept: Any = DataLoader(range(64), batch_size=8, num_workers=2, persistent_workers=True)
    saves = []
    for step in range(8, 16):
        saves.append(ckpt.save({"w": weights(), "step": step}, step=step))
        fresh: Any = DataLoader(range(16), batch_size=8, num_workers=2)
        assert sum(len(batch) for batch in fresh) == 16
        assert sum(len(batch) for batch in kept) == 64
    assert [save.result(50).step for save in saves] == list(range(8, 16))
    tell(notes, "workers", " ".join(str(each.pid) for each in kept._iterator._workers))
    signal.pause()


if "grouped" in sys.argv:
    dist.init_process_group("gloo")
with ckptd.Checkpointer(root, experiment="e", run=what, timeout=60) as opened:
    opened.save({"first": 1}, step=7).result(50)
    {"survive": survive, "between": die_between, "within": die_within, "feed": feed}[what](opened)
