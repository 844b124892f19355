"""Makes a live process meet what kernels and disks do rarely, at a system call of our choice."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fakes.require_real import need_programs

STALLS = "delay_enter=60000000"  # for a minute, or until the block ends
KILLS = "signal=KILL"  # before the call has done anything


@contextmanager
def tampered(pid: int, *injections: str, on: Sequence[Path] = ()) -> Iterator[Callable[[], None]]:
    """While inside, *injections* befall process *pid*, on these paths if any are given.

    Each is `<system calls>:<what strace injects>`. What is yielded pauses the process, for good:
    a SIGSTOP that strace has not passed on yet would be lost with it.
    """
    need_programs("strace")
    calls = ",".join(injection.partition(":")[0] for injection in injections)
    injected = [f"-einject={injection}" for injection in injections]
    tracer = subprocess.Popen(
        ["strace", "-fp", str(pid), f"-etrace={calls}", *injected, *(f"-P{path}" for path in on)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    said = ""
    while "attached" not in said:  # before it, what it makes of the path
        said = tracer.stderr.readline()
        assert said, "strace did not attach"
    told = tracer.stderr

    def pause() -> None:
        os.kill(pid, signal.SIGSTOP)
        assert any("stopped by SIGSTOP" in line for line in told), "strace ended"

    try:
        yield pause
    finally:
        tracer.kill()
        tracer.communicate()


@contextmanager
def recorded(pid: int, calls: str, file: Path, *, paths: bool = False) -> Iterator[None]:
    """Record *calls*, a set of system calls, of process *pid* in *file*; *paths* beside numbers."""
    need_programs("strace")
    tracer = subprocess.Popen(
        ["strace", "-fp", str(pid), f"-etrace={calls}", "-o", file, *(["-y"] if paths else [])],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    assert "attached" in tracer.stderr.readline(), "strace did not attach"
    try:
        yield
    finally:
        tracer.terminate()
        tracer.communicate()
