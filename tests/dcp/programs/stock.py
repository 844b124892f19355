"""A process that has no ckptd reads checkpoints, on its own."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

for name in ("ckptd", "ckptd_daemon", "ckptd_proto"):
    sys.modules[name] = None  # type: ignore[assignment]  # importing it now fails

import states
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

warnings.filterwarnings("ignore")


def converted(path: Path) -> Any:
    one = path.with_suffix(".pt")
    dcp_to_torch_save(path, one)
    return torch.load(one, weights_only=True)


def check_state(path: Path) -> None:
    """What `states` has, which every rank has saved its part of."""
    expected = states.whole()
    found = {"tensors": states.zeros(expected), "plain": dict.fromkeys(states.OBJECTS)}
    found["plain"]["schedule"] = {"milestones": None, "last": None}
    dcp.load(found, checkpoint_id=path, no_dist=True)
    states.check_same(found["tensors"], expected)
    assert found["plain"] == states.OBJECTS
    found = converted(path)
    states.check_same(found["tensors"], expected)
    assert found["plain"] == states.OBJECTS
    assert found["only.1"]["dataloader"] == {"position": 1}
    assert torch.equal(found["only.1"]["weights"], torch.ones(2))


def check_model(path: Path, whole: Path) -> None:
    """A model that several ranks have trained, and its optimizer's state."""
    expected = torch.load(whole, weights_only=True)
    found = zeros(expected)
    dcp.load(found, checkpoint_id=path, no_dist=True)
    check_same(found, expected)
    check_same(converted(path), expected)


def zeros(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: zeros(value) for name, value in values.items()}
    return torch.zeros_like(values)


def check_same(found: Any, expected: Any) -> None:
    """Everything expected is there, bit for bit."""
    if isinstance(expected, dict):
        for name, value in expected.items():
            check_same(found[name], value)
    else:
        assert torch.equal(found, expected)


for path in map(Path, sys.argv[1:]):
    if (whole := path.with_name("whole.pt")).exists():
        check_model(path, whole)
    else:
        check_state(path)
sys.stdout.write("equal\n")
