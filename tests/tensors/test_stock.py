from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from ckptd.tensors.values import same
from fakes import images

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.bool,
    torch.int8, torch.uint8, torch.int64, torch.uint16, torch.uint32, torch.uint64,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def bits(tensor: torch.Tensor) -> list[int]:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).tolist() if flat.numel() else []


def raw(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    if dtype == torch.bool:
        return torch.rand(shape) > 0.5
    return torch.randint(0, 120, (*shape[:-1], shape[-1] * dtype.itemsize), dtype=torch.uint8).view(
        dtype
    )


def test_stock_load_reads_every_dtype_layout_and_value_bit_for_bit(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {str(dtype): raw(dtype, 3, 5) for dtype in DTYPES}
    tensors |= {
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(2, 0, 3),
        "transposed": torch.randn(4, 6).t(),
        "expanded": torch.randn(1, 3).expand(4, 3),
        "sliced": torch.randn(10)[::3],
        "big": torch.randn(600_000),
        "conjugated": torch.randn(3, dtype=torch.complex64).conj(),
    }
    plain = {"step": 7, "rng": random.getstate(), "np": np.arange(3), "deep": [1, {"x": (2, None)}]}
    state = {"tensors": tensors, "plain": plain, "list": [torch.ones(2), {"a": torch.ones(1)}]}
    images.write(tmp_path, state)
    template: dict[str, Any] = {
        "tensors": {
            name: torch.zeros_like(t, memory_format=torch.contiguous_format)
            for name, t in tensors.items()
        },
        "plain": {"step": 0, "rng": None, "np": None, "deep": [0, {"x": None}]},
        "list": [torch.zeros(2), {"a": torch.zeros(1)}],
    }
    dcp.load(template, checkpoint_id=tmp_path, no_dist=True)
    for name, tensor in tensors.items():
        assert bits(template["tensors"][name]) == bits(tensor.resolve_conj()), name
    assert same(template["plain"], plain)
    assert torch.equal(template["list"][1]["a"], torch.ones(1))


def test_shards_of_several_ranks_become_one_tensor(tmp_path: Path) -> None:
    images.write(tmp_path, {"a": torch.ones(2)}, {"b": torch.ones(3)})
    template = {"a": torch.zeros(2), "b": torch.zeros(3)}
    dcp.load(template, checkpoint_id=tmp_path, no_dist=True)
    assert bits(template["a"]) == bits(torch.ones(2))
    assert bits(template["b"]) == bits(torch.ones(3))


def test_torch_converts_it_to_one_nested_file(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    state = {"model": model, "opt": torch.optim.SGD(model.parameters(), lr=0.5), "step": 3}
    images.write(tmp_path, state)
    dcp_to_torch_save(tmp_path, tmp_path / "one.pt")
    converted = torch.load(tmp_path / "one.pt", weights_only=True)
    assert torch.equal(converted["model"]["weight"], model.weight)
    assert converted["opt"]["param_groups"][0]["lr"] == 0.5
    assert converted["step"] == 3


def test_torchs_own_pairing_resumes_a_model_and_its_optimizer(tmp_path: Path) -> None:
    model, fresh = nn.Linear(3, 3), nn.Linear(3, 3)
    optimizer, other = (torch.optim.AdamW(each.parameters()) for each in (model, fresh))
    for _ in range(3):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    images.write(tmp_path, {"model": model, "optimizer": optimizer})
    model_state, optimizer_state = get_state_dict(fresh, other)
    template = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(template, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(fresh, other, model_state_dict=model_state, optim_state_dict=optimizer_state)
    assert torch.equal(fresh.weight, model.weight)
    ours, theirs = optimizer.state[model.weight], other.state[fresh.weight]
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_no_warning_is_needed_to_read_a_file(tmp_path: Path) -> None:
    images.write(tmp_path, {"w": torch.ones(4)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader = dcp.FileSystemReader(tmp_path)
        assert set(reader.read_metadata().state_dict_metadata) == {"w"}
