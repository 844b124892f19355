"""What is loaded into: sharded tensors that exist and have been touched; and what belongs there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, zeros

from ckptd.bench.restores.orders import Task
from ckptd.bench.saves.memory import COLUMNS, ROW_BYTES, TENSORS, tensor_file
from ckptd.bench.saves.state import State, local


def blank(task: Task) -> State:
    """Return the rank's part of tensors as large as those that were saved."""
    mesh = init_device_mesh("cpu", (task.ranks,))
    rows = task.saved_by * _rows(task)
    state = {
        f"layers.{number}.weight": zeros(rows, COLUMNS, device_mesh=mesh, placements=[Shard(0)])
        for number in range(TENSORS)
    }
    for tensor in state.values():
        tensor.to_local().fill_(-1.0)  # so that its pages are there before any clock runs
    return state


def problem(task: Task, state: State) -> str:
    """Return how the rank's part differs from what was saved, bit by bit; empty if not at all."""
    for number, (name, tensor) in enumerate(state.items()):
        found = local(tensor)
        first = task.rank * -(-task.saved_by * _rows(task) // task.ranks)  # as torch.chunk cuts
        whole = torch.cat(list(_saved(task, number)))
        if not torch.equal(found, whole[first : first + len(found)]):
            return f"{name} came back with other elements"
    return ""


def _saved(task: Task, number: int) -> Iterator[torch.Tensor]:
    for rank in range(task.saved_by):
        path = str(tensor_file(Path(task.memory), rank, number))
        count = _rows(task) * COLUMNS
        yield torch.from_file(path, shared=False, size=count, dtype=torch.int32).view(-1, COLUMNS)


def _rows(task: Task) -> int:
    """Return how many rows each rank that has saved had of a tensor."""
    return task.rank_bytes // TENSORS // ROW_BYTES
