"""What the kernel says of a process: its CPU time and its memory."""

from __future__ import annotations

import os
import re
import select
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import psutil

TICK_S = 0.01
_RESET_PEAK = "5"  # proc(5), clear_refs


class FailedError(Exception):
    """A contestant did not do what it was asked for; the text says why."""


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of all threads of *pid* so far."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


class Memory:
    """The most memory that a process had in RAM, from now on."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.peak_bytes = 0
        """Resident, with the files that it maps."""
        self.peak_anon_bytes = 0
        """Resident and its own, as far as it was seen."""
        with suppress(OSError):  # an old peak is then an upper bound
            Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)

    def look(self) -> None:
        """Take note of what it has now; once it has ended there is nothing to see."""
        found = status(self._pid)
        self.peak_bytes = max(self.peak_bytes, found.get("VmHWM", 0))
        self.peak_anon_bytes = max(self.peak_anon_bytes, found.get("RssAnon", 0))


def status(pid: int) -> Mapping[str, int]:
    """Return what /proc says of the memory of *pid*, in bytes; nothing if it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return {name: int(kib) << 10 for name, kib in re.findall(r"(\w+):\s+(\d+) kB", text)}


def await_readable(fd: int, tick: Callable[[], None], timeout_s: float) -> bool:
    """Wait until *fd* is readable, calling *tick* often; say whether it is."""
    for _ in range(int(timeout_s / TICK_S)):
        tick()
        readable, _, _ = select.select([fd], [], [], TICK_S)
        if readable:
            return True
    return False


def version_of(text: str) -> str:
    """Return the first thing in *text* that looks like a version."""
    found = re.search(r"\d+\.\d+[\w.+-]*", text)
    return found[0] if found else "unknown"


def last_line(said: TextIO) -> str:
    """Return the last line of what a process wrote to a file: most say there what was wrong."""
    said.seek(0)
    lines = said.read().strip().splitlines()
    return lines[-1].strip() if lines else "none"


def sync(path: Path) -> None:
    """Have the bytes of *path* on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
