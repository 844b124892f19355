"""A real training step that is small: forward, backward and Adam on one thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

WIDTH = 512
HIDDEN = 1024
BATCH = 64


@dataclass(frozen=True, slots=True)
class Step:
    """What one step took."""

    wall_s: float
    cpu_s: float


@dataclass(slots=True)
class Steps:
    """What many steps took."""

    _taken: list[Step] = field(default_factory=list)

    def add(self, step: Step) -> None:
        """Count one more."""
        self._taken.append(step)

    def __len__(self) -> int:
        return len(self._taken)

    @property
    def mean_s(self) -> float:
        """How long a step took on average; 0 if there was none."""
        return sum(step.wall_s for step in self._taken) / max(1, len(self._taken))

    @property
    def cpu_s(self) -> float:
        """What all took of the CPU."""
        return sum(step.cpu_s for step in self._taken)


class Training:
    """A model that learns noise."""

    def __init__(self, batches: Iterator[torch.Tensor]) -> None:
        self._batches = batches
        self._model = nn.Sequential(
            nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        )
        self._optimizer = torch.optim.Adam(self._model.parameters())

    @classmethod
    @contextmanager
    def begun(cls, *, with_worker: bool) -> Iterator[Self]:
        """Give a training whose batches come from this thread, or from a worker process."""
        torch.set_num_threads(1)
        loader = DataLoader(_Noise(), batch_size=None, num_workers=int(with_worker))
        training = cls(iter(loader))
        training.step()  # the first allocates, and starts the worker
        yield training

    def step(self) -> Step:
        """Do one."""
        began_s, cpu_s = time.perf_counter(), time.thread_time()
        batch = next(self._batches)
        loss = (self._model(batch) - batch).square().mean()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return Step(time.perf_counter() - began_s, time.thread_time() - cpu_s)


class _Noise(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            yield torch.randn(BATCH, WIDTH)
