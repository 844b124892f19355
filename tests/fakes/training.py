"""A small state that trains: a model, and its optimizer; and where it is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import ckptd
from fakes.daemon import Daemon


def training() -> dict[str, Any]:
    """A state that has taken a step; BatchNorm has buffers, which no optimizer owns."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))
    state = {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.1)}
    step(state)
    return state


def step(state: dict[str, Any]) -> None:
    backward(state)
    state["optimizer"].step()


def backward(state: dict[str, Any]) -> None:
    state["model"](torch.randn(8, 64)).square().sum().backward()


def values(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    kept = {f"model.{name}": value.clone() for name, value in state["model"].state_dict().items()}
    for number, held in state["optimizer"].state_dict()["state"].items():
        kept |= {f"{number}.{name}": value.clone() for name, value in held.items()}
    return kept


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


def opened(daemon: Daemon, root: Path, **options: Any) -> ckptd.Checkpointer:
    place = {"experiment": "e", "run": "r", "ranks": "self", "socket": daemon.socket}
    return ckptd.Checkpointer(root, **place, **options)


def saved(daemon: Daemon, path: Path) -> dict[str, torch.Tensor]:
    """What is in the newest checkpoint below *path*."""
    state = training()
    with opened(daemon, path, read_only=True) as reader:
        reader.load(state)
    return values(state)
