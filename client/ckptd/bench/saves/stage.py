"""Where saves are raced: a state in memory, a daemon, a folder on the disk that is measured."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ckptd.bench import node
from ckptd.bench.figures import OURS
from ckptd.bench.saves import job
from ckptd.bench.saves.disk import Bar, bar
from ckptd.bench.saves.job import Job, Shape
from ckptd.bench.saves.memory import noise, rank_bytes

_MODULES = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything."""

    ranks: int = 2
    rank_bytes: int = 1 << 30
    repeats: int = 3
    """Rounds that count."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What a case needs."""

    plan: Plan
    shape: Shape
    scratch: Path
    bar: Bar
    peers: tuple[str, ...]
    """The ways to save besides ours."""
    say: Callable[[str], None]
    """Tells people how far it is."""

    @property
    def size_bytes(self) -> int:
        """Of one save."""
        return self.shape.ranks * self.shape.rank_bytes

    @contextmanager
    def job(self, way: str, *, loader: bool) -> Iterator[Job]:
        """Start a job of ranks that save one way; ours on a node that has not saved before."""
        shape = replace(self.shape, loader=loader)
        with ExitStack() as stack:
            environment, helpers = _MODULES, []
            if way == OURS:
                daemon = stack.enter_context(node.running(self.scratch / "state"))
                environment, helpers = {**daemon.environment, **_MODULES}, [daemon.pid]
            yield stack.enter_context(job.running(way, shape, environment, helpers))

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Give an empty folder, which is gone afterwards; the disk is quiet then."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            os.sync()
            yield Path(folder)


@contextmanager
def stage(
    directory: Path, plan: Plan, peers: tuple[str, ...], say: Callable[[str], None]
) -> Iterator[Stage]:
    """Set everything up, results below *directory*; it is gone after the block."""
    with ExitStack() as stack:
        made = tempfile.TemporaryDirectory(dir=directory, prefix="ckptd-bench-")
        scratch = Path(stack.enter_context(made)).absolute()
        size = rank_bytes(plan.rank_bytes)
        say("making the state")
        memory = stack.enter_context(noise(plan.ranks, size))
        shape = Shape(plan.ranks, size, memory)
        yield Stage(plan, shape, scratch, bar(), peers, say)
