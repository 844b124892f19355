"""The ways to load: ckptd's, torch's own, and a plain copy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import ckptd
from ckptd.bench.figures import OURS
from ckptd.bench.restores.targets import COPY, DCP, TORCH
from ckptd.bench.saves.state import State

_EXPERIMENT, _RUN, _STEP = "bench", "restore", 1


class Way(Protocol):
    """How a rank saves, off the clock, and loads."""

    def save(self, state: State, folder: Path) -> None:
        """Return when it is on the disk."""
        ...

    def ready(self, state: State, folder: Path) -> None:
        """Do what a job does before it loads, off the clock."""
        ...

    def load(self, state: State, folder: Path) -> None:
        """Fill the state."""
        ...


class _Ckptd:
    def __init__(self) -> None:
        self._checkpoints: ckptd.Checkpointer | None = None

    def save(self, state: State, folder: Path) -> None:
        self._joined(folder).save(state, step=_STEP).result()

    def ready(self, state: State, folder: Path) -> None:
        self._joined(folder)

    def load(self, state: State, folder: Path) -> None:
        self._joined(folder).load(dict(state), _STEP)

    def close(self) -> None:
        if self._checkpoints is not None:
            self._checkpoints.close()

    def _joined(self, folder: Path) -> ckptd.Checkpointer:
        if self._checkpoints is None:
            self._checkpoints = ckptd.Checkpointer(folder, experiment=_EXPERIMENT, run=_RUN)
        return self._checkpoints


class _Dcp:
    def save(self, state: State, folder: Path) -> None:
        save(dict(state), checkpoint_id=folder / "dcp")

    def ready(self, state: State, folder: Path) -> None:
        pass

    def load(self, state: State, folder: Path) -> None:
        load(dict(state), checkpoint_id=folder / "dcp")


class _Torch:
    def save(self, state: State, folder: Path) -> None:
        with _part(folder).open("wb") as file:
            torch.save({name: tensor.to_local() for name, tensor in state.items()}, file)
            file.flush()
            os.fsync(file.fileno())

    def ready(self, state: State, folder: Path) -> None:
        pass

    def load(self, state: State, folder: Path) -> None:
        found = torch.load(_part(folder), mmap=True)
        for name, tensor in state.items():
            tensor.to_local().copy_(found[name])  # a mapping is nothing that one can train on


class _Copy:
    """The bar: each rank copies as much from memory to memory, with one thread."""

    def __init__(self) -> None:
        self._parts: list[torch.Tensor] = []

    def save(self, state: State, folder: Path) -> None:
        pass

    def ready(self, state: State, folder: Path) -> None:
        self._parts = [torch.empty_like(tensor.to_local()).fill_(1) for tensor in state.values()]

    def load(self, state: State, folder: Path) -> None:
        for tensor, part in zip(state.values(), self._parts, strict=True):
            tensor.to_local().copy_(part)


def _part(folder: Path) -> Path:
    return folder / f"{dist.get_rank()}.pt"


@contextmanager
def _ckptd() -> Iterator[Way]:
    way = _Ckptd()
    yield way
    way.close()


@contextmanager
def _dcp() -> Iterator[Way]:
    yield _Dcp()


@contextmanager
def _torch() -> Iterator[Way]:
    yield _Torch()


@contextmanager
def _copy() -> Iterator[Way]:
    yield _Copy()


WAYS: Mapping[str, Callable[[], AbstractContextManager[Way]]] = {
    OURS: _ckptd,
    DCP: _dcp,
    TORCH: _torch,
    COPY: _copy,
}
"""By the names that tables show."""
