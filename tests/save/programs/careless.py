"""A job whose last save fails, and which ends without closing anything."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import wait
from pathlib import Path

import torch

import ckptd
from ckptd_proto import errors

how, root = sys.argv[1], Path(sys.argv[2])
root.mkdir()


def lose_the_mount() -> None:
    root.rename(root.with_name("moved"))
    root.mkdir()


def by_torchs_calls() -> None:
    state = {"x": torch.ones(3)}
    ckptd.dcp.async_save(state, checkpoint_id=root / "e" / "r" / "step-1").result(60)
    lose_the_mount()
    wait([ckptd.dcp.async_save(state, checkpoint_id=root / "e" / "r" / "step-2")], 60)


def by_a_checkpointer() -> tuple[ckptd.Checkpointer, ckptd.Save]:
    ckpt = ckptd.Checkpointer(root, experiment="e", run="r")
    ckpt.save({"x": 1}, step=1).result(60)
    lose_the_mount()
    return ckpt, ckpt.save({"x": 2}, step=2)


if how == "torch":
    by_torchs_calls()
else:
    ckpt, save = by_a_checkpointer()
    if how == "forgets":
        del ckpt  # while the save may be on its way
    assert save.wait(60)
    for thread in threading.enumerate():
        if thread.name.startswith("ckptd-save"):
            thread.join()  # it tells who cannot ask any more
    if how == "asks":
        try:
            save.result()
        except errors.CkptdError:
            pass
        else:
            raise AssertionError("it was saved")
sys.stdout.write("ended\n")
