"""The other end of `trainer`: a job of some ranks, started, told to save, and looked at."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import psutil

from ckptd.bench import jobs, node, processes
from ckptd.bench.figures import Reading
from ckptd.bench.jobs import Ranks, WrongError, cpu_s
from ckptd.bench.saves.orders import Order, Report, Task

_LOOK_S = 0.1
_SHARED_MEMORY = Path("/dev/shm")
_ARENA = "CKPTD_ARENA_DIR"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a job trains with."""

    ranks: int
    rank_bytes: int
    memory: Path
    loader: bool = False


class Job:
    """Ranks that are ready, and whoever else works for them."""

    def __init__(self, ranks: Ranks, helpers: Sequence[int]) -> None:
        self._ranks = ranks
        self._helpers = helpers
        self._looked_s = 0.0
        self._began_bytes = self._most_bytes = _held_bytes(self._pids())

    def save(self, order: Order) -> Reading:
        """Have all ranks save once; raises `FailedError` with what one of them said of it."""
        pids = self._pids()
        used_s = cpu_s(pids)
        self._most_bytes = _held_bytes(pids)
        reports = [Report(**answer) for answer in self._ranks.ask(asdict(order), self._look)]
        if problems := [report.problem for report in reports if report.problem]:
            raise WrongError(problems[0])
        used_s = cpu_s(self._pids()) - used_s - sum(report.steps_cpu_s for report in reports)
        reading = {
            "durable_s": max(report.durable_s for report in reports),
            "blocked_ms": 1e3 * max(report.blocked_s for report in reports),
            "cpu_s": used_s,
            "extra_bytes": float(self._most_bytes - self._began_bytes),
        }
        if all(report.steps for report in reports):
            reading["step_ms"] = 1e3 * mean(report.before_s for report in reports)
            reading["slower_share"] = mean(report.slower_share for report in reports)
        return reading

    def _look(self) -> None:
        """Take note of the memory, now and then: looking takes time from the ranks."""
        now = time.monotonic()
        if now - self._looked_s >= _LOOK_S:
            self._looked_s = now
            self._most_bytes = max(self._most_bytes, _held_bytes(self._pids()))

    def _pids(self) -> list[int]:
        return [*self._helpers, *self._ranks.pids]


def _held_bytes(pids: Sequence[int]) -> int:
    """Return what the processes have for themselves, and all that is in shared memory."""
    own = sum(processes.status(pid).get("RssAnon", 0) for pid in pids)
    return own + sum(psutil.disk_usage(str(path)).used for path in _shared_memories())


def _shared_memories() -> Iterable[Path]:
    """Return where shared memory is in use: an arena may have a mount of its own."""
    places = [_SHARED_MEMORY, Path(node.settings().get(_ARENA, _SHARED_MEMORY))]
    return {place.stat().st_dev: place for place in places if place.is_dir()}.values()


@contextmanager
def running(
    way: str, shape: Shape, environment: Mapping[str, str], helpers: Sequence[int] = ()
) -> Iterator[Job]:
    """Start a job that saves one way; it ends with the block.

    *helpers* are the processes besides that its CPU time and memory are in.
    """
    port = jobs.free_port()
    tasks = [asdict(_task(way, shape, rank, port)) for rank in range(shape.ranks)]
    with jobs.running("ckptd.bench.saves.trainer", tasks, environment) as ranks:
        yield Job(ranks, helpers)


def _task(way: str, shape: Shape, rank: int, port: int) -> Task:
    return Task(way, rank, shape.ranks, port, str(shape.memory), shape.rank_bytes, shape.loader)
