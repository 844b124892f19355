"""Jobs of the benchmarks: some ranks, each a process that answers lines of JSON."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

import psutil

from ckptd.bench import processes
from ckptd.bench.processes import FailedError, await_readable, last_line

START_S = 120.0
LIMIT_S = 900.0


class WrongError(FailedError):
    """What came back is not what there was."""


class Ranks:
    """Ranks that are ready."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def ask(
        self, message: Mapping[str, Any], tick: Callable[[], None] = lambda: None
    ) -> list[dict[str, Any]]:
        """Tell all ranks the same, and return what each answers; *tick* is called meanwhile.

        Raises `FailedError` if one does not.
        """
        for rank in self._processes:
            assert rank.stdin is not None  # by PIPE
            rank.stdin.write(json.dumps(message) + "\n")
            rank.stdin.flush()
        return [_answer(rank, tick) for rank in self._processes]

    @property
    def pids(self) -> list[int]:
        """The ranks, and the processes that they have started."""
        found = []
        for rank in self._processes:
            found.append(rank.pid)
            found += [child.pid for child in psutil.Process(rank.pid).children(recursive=True)]
        return found


def _answer(rank: subprocess.Popen[str], tick: Callable[[], None]) -> dict[str, Any]:
    assert rank.stdout is not None  # by PIPE
    line = ""
    if await_readable(rank.stdout.fileno(), tick, LIMIT_S):
        line = rank.stdout.readline()
    if not line:
        raise FailedError("a rank ended, or did not end, without an answer")
    answer: dict[str, Any] = json.loads(line)
    return answer


def cpu_s(pids: Sequence[int]) -> float:
    """Return the CPU seconds of all these processes so far."""
    return sum(processes.cpu_s(pid) for pid in pids)


@contextmanager
def running(
    module: str, tasks: Sequence[Mapping[str, Any]], environment: Mapping[str, str]
) -> Iterator[Ranks]:
    """Start *module* once for each task, which it gets as JSON; the job ends with the block.

    A `FailedError` from within is raised with the last words of the ranks.
    """
    with ExitStack() as stack:
        said = stack.enter_context(tempfile.TemporaryFile("w+"))
        try:
            ranks = [stack.enter_context(_rank(module, task, environment, said)) for task in tasks]
            for rank in ranks:
                assert rank.stdout is not None  # by PIPE
                is_there = await_readable(rank.stdout.fileno(), lambda: None, START_S)
                if not is_there or not rank.stdout.readline():
                    raise FailedError("a rank did not start")
            yield Ranks(ranks)
            for rank in ranks:
                assert rank.stdin is not None  # by PIPE
                rank.stdin.close()
            for rank in ranks:
                rank.wait(LIMIT_S)
        except FailedError as error:
            raise type(error)(f"{error}; last words: {last_line(said)}") from error


@contextmanager
def _rank(
    module: str, task: Mapping[str, Any], environment: Mapping[str, str], said: TextIO
) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", module, json.dumps(task)],
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


def free_port() -> int:
    """Return a port on which the ranks of a job may meet."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
