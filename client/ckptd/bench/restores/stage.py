"""Where loads are raced: what every way has saved, and two daemons, of which one remembers it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ckptd.bench import jobs, node
from ckptd.bench.figures import OURS, Reading
from ckptd.bench.jobs import WrongError, cpu_s
from ckptd.bench.node import Node
from ckptd.bench.processes import FailedError
from ckptd.bench.restores.orders import Order, Report, Task
from ckptd.bench.restores.targets import TORCH
from ckptd.bench.saves.disk import Bar, bar
from ckptd.bench.saves.memory import noise, rank_bytes

_LOADER = "ckptd.bench.restores.loader"
_MODULES = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
_READ_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything."""

    ranks: int = 2
    rank_bytes: int = 1 << 30
    repeats: int = 3
    """Rounds that count."""

    @property
    def other_ranks(self) -> int:
        """How many ranks load what is resharded."""
        return self.ranks // 2 or 1 if self.ranks > 1 else 2


@dataclass(frozen=True, slots=True)
class Stage:
    """What a case needs."""

    plan: Plan
    rank_bytes: int
    memory: Path
    remembering: Node
    """Has what was saved in memory."""
    forgetful: Node
    """Has not."""
    scratch: Path
    bar: Bar
    peers: tuple[str, ...]
    """The ways to load besides ours."""
    say: Callable[[str], None]
    """Tells people how far it is."""

    @property
    def size_bytes(self) -> int:
        """Of what is loaded, by all ranks together."""
        return self.plan.ranks * self.rank_bytes

    def save(self, way: str) -> None:
        """Have a job save the state one way, off the clock."""
        folder = self.folder(way)
        folder.mkdir()
        order = Order(str(folder), is_save=True)
        with self._job(way, self.plan.ranks, self.remembering) as ranks:
            ranks.ask(asdict(order))

    def load(self, way: str, tier: str, ranks: int, *, is_checked: bool) -> Reading:
        """Have a job of so many ranks load what that way saved, from *tier*; raises `FailedError`."""
        daemon = self.remembering if tier == "memory" else self.forgetful
        if way == OURS and tier == "memory" and not self.remembering.client.status().arena.slots:
            raise FailedError("what was saved did not stay in memory: is there too little?")
        order = Order(str(self.folder(way)), is_checked=is_checked)
        with self._job(way, ranks, daemon) as job:
            self._place(way, tier)
            used_s = cpu_s([daemon.pid])
            reports = [Report(**answer) for answer in job.ask(asdict(order))]
            used_s = cpu_s([daemon.pid]) - used_s if way == OURS else 0.0
        if problems := [report.problem for report in reports if report.problem]:
            raise WrongError(problems[0])
        used_s += sum(report.cpu_s for report in reports)
        return {"restored_s": max(report.took_s for report in reports), "cpu_s": used_s}

    def folder(self, way: str) -> Path:
        """Return where a way has its files."""
        return self.scratch / way

    def _place(self, way: str, tier: str) -> None:
        """Have what *way* loads where the case wants it.

        What lies in memory has been read just before, whoever's it is: where a machine is a
        virtual one, memory that nobody has touched for a while may be slow at its next touch.
        """
        files = [path for path in self.folder(way).rglob("*") if path.is_file()]
        if way == OURS and tier == "memory":
            files = self.remembering.slots()
        for path in files:
            drop(path) if tier == "cold" else read(path)

    @contextmanager
    def _job(self, way: str, ranks: int, daemon: Node) -> Iterator[jobs.Ranks]:
        environment: Mapping[str, str] = {**daemon.environment, **_MODULES}
        port = jobs.free_port()
        saved_by, memory = self.plan.ranks, str(self.memory)
        tasks = [
            asdict(Task(way, rank, ranks, saved_by, port, memory, self.rank_bytes))
            for rank in range(ranks)
        ]
        with jobs.running(_LOADER, tasks, environment) as started:
            yield started


def drop(path: Path) -> None:
    """Have nothing of a file in the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def read(path: Path) -> None:
    """Have all of a file in the page cache."""
    buffer = bytearray(_READ_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


@contextmanager
def stage(
    directory: Path, plan: Plan, peers: tuple[str, ...], say: Callable[[str], None]
) -> Iterator[Stage]:
    """Set everything up, files below *directory*; it is gone after the block."""
    with ExitStack() as stack:
        made = tempfile.TemporaryDirectory(dir=directory, prefix="ckptd-bench-")
        scratch = Path(stack.enter_context(made)).absolute()
        size = rank_bytes(plan.rank_bytes)
        say("making the state")
        memory = stack.enter_context(noise(plan.ranks, size))
        one = stack.enter_context(node.running(scratch / "state"))
        other = stack.enter_context(node.running(scratch / "other"))
        here = Stage(plan, size, memory, one, other, scratch, bar(), peers, say)
        for way in (OURS, *peers):
            say(f"saving, {way}")
            here.save(way)
        yield here


def resharding(peers: tuple[str, ...]) -> tuple[str, ...]:
    """Return those ways that load with another number of ranks than have saved."""
    return tuple(name for name in peers if name != TORCH)
