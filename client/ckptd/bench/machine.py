"""What the figures were measured on."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

from ckptd.bench import node


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine, and what ran on it."""

    date: str
    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    filesystem: str
    """Of the measured disk."""
    versions: dict[str, str]
    settings: dict[str, str]
    """Of the daemon, as far as the environment stated them."""
    load: float
    """Of the last minute before it began; others were at work if it is not small."""


def describe(directory: Path, versions: Sequence[tuple[str, str]]) -> Machine:
    """Describe this machine, with the disk that *directory* is on."""
    own = [("ckptd", version("ckptd")), ("python", platform.python_version())]
    return Machine(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        cpu=_cpu(),
        cores=psutil.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        kernel=f"{platform.system()} {platform.release()}",
        filesystem=_filesystem(directory.absolute()),
        versions=dict([*own, *versions]),
        settings=dict(node.settings()),
        load=psutil.getloadavg()[0],
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine() or sys.platform


def _filesystem(directory: Path) -> str:
    """Return the kind of filesystem that is mounted nearest above *directory*."""
    kinds = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    for place in (directory, *directory.parents):
        if place in kinds:
            return kinds[place]
    return "unknown"


def lines(machine: Machine) -> list[str]:
    """Say it to people."""
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    memory = f"{machine.memory_bytes / (1 << 30):.0f} GiB"
    parts = machine.cpu, f"{machine.cores} cores", memory, machine.filesystem, machine.kernel
    said = [", ".join(parts), f"{versions}; {machine.date}, load {machine.load:.1f} before"]
    if machine.settings:
        stated = ", ".join(f"{name}={value}" for name, value in machine.settings.items())
        said.append(f"with {stated}")
    return said
