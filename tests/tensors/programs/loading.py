"""Loads part of a large tensor, and says how much memory of its own the process took for it."""

from __future__ import annotations

import re
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from ckptd.tensors import load
from ckptd.tensors.images import Images
from ckptd.tensors.index import NAME, Index

COLUMN_RANK, COLUMN_RANKS = 2, 16

how, directory = sys.argv[1], Path(sys.argv[2])


def anonymous_bytes() -> int:
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def target(rows: int, columns: int) -> torch.Tensor:
    if how == "transposed":
        return torch.empty(columns, rows, dtype=torch.int32).t()
    store = FakeStore()
    dist.init_process_group("fake", store=store, rank=COLUMN_RANK, world_size=COLUMN_RANKS)
    mesh = init_device_mesh("cpu", (COLUMN_RANKS,))
    part = torch.empty(rows, columns // COLUMN_RANKS, dtype=torch.int32)
    return DTensor.from_local(part, mesh, (Shard(1),), run_check=False)


images = Images.open(directory)
found = Index.decode(images.read(NAME), where="here")
info = found.tensors["w"]
wanted = target(*info.shape)
mine = wanted.to_local() if isinstance(wanted, DTensor) else wanted
mine.fill_(-1)  # its own memory counts as taken before
before_bytes = peak_bytes = anonymous_bytes()
is_over = threading.Event()


def watch() -> None:
    global peak_bytes
    while not is_over.is_set():
        peak_bytes = max(peak_bytes, anonymous_bytes())
        time.sleep(0.001)


watcher = threading.Thread(target=watch)
watcher.start()
load.fill(images, load.pieces([load.Wish("w", info, wanted)]))
is_over.set()
watcher.join()
rows, columns = info.shape
first, width = (0, columns) if how == "transposed" else (COLUMN_RANK * mine.shape[1], mine.shape[1])
is_right = all(
    torch.equal(mine[row], torch.arange(width, dtype=torch.int32) + row * columns + first)
    for row in range(rows)
)
sys.stdout.write(f"{is_right} {peak_bytes - before_bytes}\n")
