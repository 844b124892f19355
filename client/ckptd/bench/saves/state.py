"""What is saved, as torch sees it: sharded tensors over the memory of the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from ckptd.bench.saves.memory import COLUMNS, TENSORS, tensor_file

State = Mapping[str, DTensor]


def shards(folder: Path, rank: int, ranks: int, size_bytes: int) -> State:
    """Return the rank's part of each tensor; what it writes there nobody else sees."""
    mesh = init_device_mesh("cpu", (ranks,))
    count = size_bytes // TENSORS // torch.float32.itemsize
    found = {}
    for number in range(TENSORS):
        path = str(tensor_file(folder, rank, number))
        part = torch.from_file(path, shared=False, size=count, dtype=torch.float32)
        part.view(torch.int32).sum()  # so that its pages are mapped before any clock runs
        whole = DTensor.from_local(part.view(-1, COLUMNS), mesh, [Shard(0)])
        found[f"layers.{number}.weight"] = whole
    return found


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the rank's own part, as bits: NaNs are equal if they are the same."""
    part = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return part.view(torch.int32)


def mark(shards: State, step: int) -> None:
    """Make every tensor another one than at any other step."""
    for tensor in shards.values():
        local(tensor).view(-1)[0] = step
