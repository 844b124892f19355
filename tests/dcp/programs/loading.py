"""Two ranks load by torch's own call what both, or one of them, want; each says what it read."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

import ckptd
from ckptd.link.connection import Connection
from ckptd.saving import memory
from ckptd.tensors.copies import File
from ckptd.tensors.images import Images
from ckptd.tensors.index import NAME, Index

path, size = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo")
rank = dist.get_rank()


def read_bytes() -> int:
    """Return what this process has had read from disks."""
    found = re.search(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def state(value: float) -> dict[str, torch.Tensor]:
    return {
        "of.both": torch.full((size // 4,), value),
        f"of.{rank}": torch.full((size // 4,), value + rank),
    }


def is_near(name: str) -> bool:
    """Say whether the middle of a tensor is in the page cache."""
    images = Images.open(path)
    where = Index.decode(images.read(NAME), where="here").tensors[name].chunks[0].range
    file = File(path / where.file, lambda: os.open(path / where.file, os.O_RDWR))
    return file.is_near((where.offset + size // 2) >> 22 << 22, 4 << 20)


dcp.save(state(3.0), storage_writer=ckptd.dcp.StorageWriter(path))
uuid = Images.open(path).attempt
memory.quarantine(Connection.open(), uuid, f"__{rank}_0.distcp", "so that files are read")
dist.barrier()
found = state(0.0)
before = read_bytes()
dcp.load(found, storage_reader=ckptd.dcp.StorageReader(path))
read = read_bytes() - before
dist.barrier()
is_right = all(torch.equal(found[name], value) for name, value in state(3.0).items())
sys.stdout.write(f"{is_right} {is_near('of.both')} {is_near(f'of.{rank}')} {read}\n")
dist.barrier()
dist.destroy_process_group()
