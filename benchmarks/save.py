"""How long a save blocks the training step, and how long until it is durable, beside torch's own.

    python benchmarks/save.py [--mib 1024] [--repeats 5] [--directory DIR]

One rank, CPU tensors, everything written to *directory* and synced; one save at a time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from timing import Figures, rotate, show

import ckptd

TENSORS = 64


def main() -> None:
    """Take turns and print the table."""
    parser = argparse.ArgumentParser(description="Compare saving with torch's own ways.")
    parser.add_argument("--mib", type=int, default=1024, help="size of the state")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path.cwd())
    arguments = parser.parse_args()
    rows = arguments.mib * (1 << 20) // TENSORS // 4096
    state = {f"w{index}": torch.rand(rows, 1024) for index in range(TENSORS)}
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29571")
    dist.init_process_group("gloo", rank=0, world_size=1)
    with (
        tempfile.TemporaryDirectory(dir=arguments.directory) as scratch,
        ckptd.Checkpointer(scratch, experiment="bench", run="save", ranks="self") as checkpoints,
    ):
        root = Path(scratch)
        contestants = {
            "ckptd": lambda: with_ckptd(checkpoints, state, root),
            "dcp.async_save": lambda: with_dcp_async(state, root),
            "dcp.save": lambda: with_dcp(state, root),
            "torch.save": lambda: with_torch(state, root),
        }
        medians = rotate(contestants, arguments.repeats)
    dist.destroy_process_group()
    show(f"save of {arguments.mib} MiB, median of {arguments.repeats}", medians, "ckptd")


_steps = count()


def with_ckptd(checkpoints: ckptd.Checkpointer, state: dict[str, torch.Tensor], _: Path) -> Figures:
    """Blocked until `save` returns; durable when it is committed."""
    started = time.perf_counter()
    save = checkpoints.save(state, step=next(_steps))
    blocked = time.perf_counter() - started
    path = save.result().path
    durable = time.perf_counter() - started
    shutil.rmtree(path)
    return {"blocked": blocked, "durable": durable}


def with_dcp_async(state: dict[str, torch.Tensor], root: Path) -> Figures:
    """Blocked until `async_save` returns; durable when its future has a result."""

    def save(path: Path) -> Callable[[], object]:
        future = dcp.async_save(state, checkpoint_id=path)
        return future.result

    return _timed(save, root / "dcp-async")


def with_dcp(state: dict[str, torch.Tensor], root: Path) -> Figures:
    """Synchronous: blocked until durable."""

    def save(path: Path) -> Callable[[], object]:
        dcp.save(state, checkpoint_id=path)
        return lambda: None

    return _timed(save, root / "dcp")


def with_torch(state: dict[str, torch.Tensor], root: Path) -> Figures:
    """Synchronous, with the fsync that torch leaves out."""

    def save(path: Path) -> Callable[[], object]:
        with path.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        return lambda: None

    return _timed(save, root / "torch.pt")


def _timed(save: Callable[[Path], Callable[[], object]], path: Path) -> Figures:
    started = time.perf_counter()
    wait = save(path)
    blocked = time.perf_counter() - started
    wait()
    durable = time.perf_counter() - started
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return {"blocked": blocked, "durable": durable}


if __name__ == "__main__":
    main()
