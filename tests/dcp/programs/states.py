"""States of every kind that DCP users have: whole, and as any number of ranks hold them."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

OBJECTS: dict[str, Any] = {
    "epoch": 3,
    "lr": 0.1,
    "name": "ä",
    "none": None,
    "betas": (0.9, 0.95),
    "schedule": {"milestones": [1, 2], "last": -1},
    "rng": random.Random(0).getstate(),
}


def whole() -> dict[str, torch.Tensor]:
    """Return all tensors, unsharded; the same in every process."""
    torch.manual_seed(0)
    fp8 = torch.randint(0, 120, (6, 16), dtype=torch.uint8)
    return {
        "replicated": torch.randn(200, 300),
        "small": torch.randn(3, 5),
        "zero_d": torch.tensor(1.5),
        "zero_d_int": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "rows": torch.randn(5, 7),
        "one_row": torch.randn(1, 7),
        "columns": torch.randn(6, 9),
        "bf16": torch.randn(7, 3).to(torch.bfloat16),
        "fp8": fp8.view(torch.float8_e4m3fn),
        "fp8_flat": fp8.view(-1).clone().view(torch.float8_e5m2),
        "complex": torch.randn(5, 4, dtype=torch.complex64),
        "bool": torch.rand(9) > 0.5,
        "copied": torch.randn(8, 8),
        "grid": torch.randn(9, 10),
        "hybrid": torch.randn(10, 6),
        "cube": torch.randn(4, 6, 3),
    }


def held(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return *tensors* as this rank holds them: plain ones, and shards on one and two meshes."""
    world = dist.get_world_size()
    line = init_device_mesh("cpu", (world,))
    square = init_device_mesh("cpu", (2, world // 2))
    one: dict[str, tuple[Placement, ...]] = {
        **dict.fromkeys(("rows", "one_row", "bf16", "fp8", "fp8_flat", "complex", "bool"), (Shard(0),)),
        "columns": (Shard(1),),
        "copied": (Replicate(),),
    }  # fmt: skip
    two: dict[str, tuple[Placement, ...]] = {
        "grid": (Shard(0), Shard(1)),
        "hybrid": (Replicate(), Shard(0)),
        "cube": (Shard(1), Shard(0)),
    }
    state: dict[str, Any] = dict(tensors)
    for mesh, placements in ((line, one), (square, two)):
        for name, placed in placements.items():
            state[name] = shard(tensors[name], mesh, placed)
    return state


def shard(full: torch.Tensor, mesh: DeviceMesh, placements: tuple[Placement, ...]) -> DTensor:
    """Return this rank's part of *full*, without a collective."""
    shape, offset = compute_local_shape_and_global_offset(full.shape, mesh, placements)
    part = full
    for dim, (start, size) in enumerate(zip(offset, shape, strict=True)):
        part = part.narrow(dim, min(start, full.shape[dim]), size)
    return DTensor.from_local(
        part.contiguous().clone(),
        mesh,
        placements,
        run_check=False,
        shape=full.shape,
        stride=full.stride(),
    )


def local(value: Any) -> torch.Tensor:
    """Return what of *value* is here."""
    return value.to_local() if isinstance(value, DTensor) else value


def bits(tensor: torch.Tensor) -> list[int]:
    """Return its bytes."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).tolist() if flat.numel() else []


def zeros(state: dict[str, Any]) -> dict[str, Any]:
    """Return a template to load *state* into."""
    return {
        name: torch.zeros_like(value) if isinstance(value, torch.Tensor) else None
        for name, value in state.items()
    }


def check_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise unless they are the same to the bit, here."""
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert bits(local(found[name])) == bits(local(value)), name
        else:
            assert found[name] == value, (name, found[name])
