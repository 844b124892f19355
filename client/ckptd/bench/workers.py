"""The other end of `worker`: starting such processes and asking them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

from ckptd.bench.processes import FailedError, Memory, await_readable, last_line
from ckptd.bench.worker import Job

LIMIT_S = 900.0
"""Of one job: more than any that makes sense takes."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker said about a job; times by the machine's monotonic clock."""

    began_s: float
    ended_s: float
    cpu_s: float
    paths: Mapping[str, str]
    took_s: Sequence[float]
    messages: int

    @property
    def wall_s(self) -> float:
        """How long the job took."""
        return self.ended_s - self.began_s


class Worker:
    """A process that is ready."""

    def __init__(self, process: subprocess.Popen[str], memory: Memory) -> None:
        self._process = process
        self.memory = memory

    def ask(self, job: Job) -> None:
        """Have it begin."""
        assert self._process.stdin is not None  # by PIPE
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()

    def answer(self, tick: Callable[[], None] = lambda: None) -> Report:
        """Wait until it is done, calling *tick* often; raises `FailedError` if it failed."""
        assert self._process.stdout is not None  # by PIPE

        def look() -> None:
            self.memory.look()
            tick()

        line = ""
        if await_readable(self._process.stdout.fileno(), look, LIMIT_S):
            line = self._process.stdout.readline()
        if not line:
            raise FailedError("it ended, or did not end, without an answer")
        look()
        return Report(**json.loads(line))


@contextmanager
def working(kind: str, environment: Mapping[str, str]) -> Iterator[Worker]:
    """Start a worker; it ends with the block."""
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            [sys.executable, "-m", "ckptd.bench.worker", kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=environment,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None  # by PIPE
            if not process.stdout.readline():
                raise FailedError("it did not start")
            yield Worker(process, Memory(process.pid))
            assert process.stdin is not None  # by PIPE
            process.stdin.close()
            process.wait(LIMIT_S)
        except FailedError as error:
            process.kill()
            process.wait()
            raise FailedError(f"{error}; its last words: {last_line(said)}") from error
        finally:
            process.kill()


@contextmanager
def team(kind: str, environment: Mapping[str, str], count: int) -> Iterator[list[Worker]]:
    """Start *count* workers of one kind."""
    with ExitStack() as stack:
        yield [stack.enter_context(working(kind, environment)) for _ in range(count)]


def together(
    workers: Sequence[Worker], job: Job, tick: Callable[[], None] = lambda: None
) -> list[Report]:
    """Have all do *job* at the same time."""
    for worker in workers:
        worker.ask(job)
    return [worker.answer(tick) for worker in workers]
