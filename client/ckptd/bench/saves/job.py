"""The other end of `trainer`: a job of some ranks, started, told to save, and looked at."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import TextIO

import psutil

from ckptd.bench import processes
from ckptd.bench.figures import Reading
from ckptd.bench.processes import FailedError, await_readable, last_line
from ckptd.bench.saves.orders import Order, Report, Task

START_S = 120.0
LIMIT_S = 900.0
_LOOK_S = 0.1
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a job trains with."""

    ranks: int
    rank_bytes: int
    memory: Path
    loader: bool = False


class WrongError(FailedError):
    """What was saved is not what there was to save."""


class Job:
    """Ranks that are ready, and whoever else works for them."""

    def __init__(self, ranks: Sequence[subprocess.Popen[str]], helpers: Sequence[int]) -> None:
        self._ranks = ranks
        self._helpers = helpers
        self._looked_s = 0.0
        self._began_bytes = self._most_bytes = _held_bytes(self._pids())

    def save(self, order: Order) -> Reading:
        """Have all ranks save once; raises `FailedError` with what one of them said of it."""
        pids = self._pids()
        used_s = _cpu_s(pids)
        self._most_bytes = _held_bytes(pids)
        for rank in self._ranks:
            assert rank.stdin is not None  # by PIPE
            rank.stdin.write(json.dumps(asdict(order)) + "\n")
            rank.stdin.flush()
        reports = [self._answer(rank) for rank in self._ranks]
        if problems := [report.problem for report in reports if report.problem]:
            raise WrongError(problems[0])
        used_s = _cpu_s(self._pids()) - used_s - sum(report.steps_cpu_s for report in reports)
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

    def _answer(self, rank: subprocess.Popen[str]) -> Report:
        assert rank.stdout is not None  # by PIPE
        line = ""
        if await_readable(rank.stdout.fileno(), self._look, LIMIT_S):
            line = rank.stdout.readline()
        if not line:
            raise FailedError("a rank ended, or did not end, without an answer")
        return Report(**json.loads(line))

    def _look(self) -> None:
        """Take note of the memory, now and then: looking takes time from the ranks."""
        now = time.monotonic()
        if now - self._looked_s >= _LOOK_S:
            self._looked_s = now
            self._most_bytes = max(self._most_bytes, _held_bytes(self._pids()))

    def _pids(self) -> list[int]:
        pids = list(self._helpers)
        for rank in self._ranks:
            pids.append(rank.pid)
            pids += [child.pid for child in psutil.Process(rank.pid).children(recursive=True)]
        return pids


def _cpu_s(pids: Sequence[int]) -> float:
    return sum(processes.cpu_s(pid) for pid in pids)


def _held_bytes(pids: Sequence[int]) -> int:
    """Return what the processes have for themselves, and all that is in shared memory."""
    own = sum(processes.status(pid).get("RssAnon", 0) for pid in pids)
    shared = psutil.disk_usage(str(_SHARED_MEMORY)).used
    return own + shared


@contextmanager
def running(
    way: str, shape: Shape, environment: Mapping[str, str], helpers: Sequence[int] = ()
) -> Iterator[Job]:
    """Start a job that saves one way; it ends with the block.

    *helpers* are the processes besides that its CPU time and memory are in.
    """
    port = _free_port()
    with ExitStack() as stack:
        said = stack.enter_context(tempfile.TemporaryFile("w+"))
        try:
            ranks = [
                stack.enter_context(_rank(_task(way, shape, rank, port), environment, said))
                for rank in range(shape.ranks)
            ]
            for rank in ranks:
                assert rank.stdout is not None  # by PIPE
                is_there = await_readable(rank.stdout.fileno(), lambda: None, START_S)
                if not is_there or not rank.stdout.readline():
                    raise FailedError("a rank did not start")
            yield Job(ranks, helpers)
            for rank in ranks:
                assert rank.stdin is not None  # by PIPE
                rank.stdin.close()
            for rank in ranks:
                rank.wait(LIMIT_S)
        except FailedError as error:
            raise type(error)(f"{error}; last words: {last_line(said)}") from error


def _task(way: str, shape: Shape, rank: int, port: int) -> Task:
    return Task(way, rank, shape.ranks, port, str(shape.memory), shape.rank_bytes, shape.loader)


@contextmanager
def _rank(
    task: Task, environment: Mapping[str, str], said: TextIO
) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "ckptd.bench.saves.trainer", json.dumps(asdict(task))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        env=environment,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()  # too late for one that has ended, right for any other


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
