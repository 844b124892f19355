"""Makes a live process meet what kernels and disks do rarely, at a system call of our choice."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fakes.require_real import need_programs

STALLS = "delay_enter=60000000"  # for a minute, or until the block ends
KILLS = "signal=KILL"  # before the call has done anything


@contextmanager
def tampered(pid: int, *injections: str, on: Sequence[Path] = ()) -> Iterator[None]:
    """While inside, *injections* befall process *pid*, on these paths if any are given.

    Each is `<system calls>:<what strace injects>`.
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
    try:
        yield
    finally:
        tracer.kill()
        tracer.communicate()


@contextmanager
def recorded(pid: int, calls: str, file: Path) -> Iterator[None]:
    """Record *calls*, a set of system calls, of process *pid* in *file*."""
    need_programs("strace")
    tracer = subprocess.Popen(
        ["strace", "-fp", str(pid), f"-etrace={calls}", "-o", file],
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
