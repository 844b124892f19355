"""How much memory staged saves may take: what the filesystem, the node and the cgroup leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil

from ckptd_daemon.store import durable

_CGROUPS: Final = Path("/sys/fs/cgroup")
_MEMBERSHIP: Final = Path("/proc/self/cgroup")
_UNLIMITED_BYTES: Final = 1 << 60  # version 1 says "no limit" by a huge number


def room_bytes(arena_dir: Path) -> int:
    """Return what can be allocated in *arena_dir* now without anything running out."""
    limits = [durable.free_bytes(arena_dir), psutil.virtual_memory().available]
    return max(0, min([*limits, *_cgroup_headrooms(_MEMBERSHIP.read_text())]))


def _cgroup_headrooms(membership: str) -> Iterator[int]:
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            yield from _headrooms(_CGROUPS, path, *names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _headrooms(_CGROUPS / "memory", path, *names)


def _headrooms(mount: Path, path: str, limit: str, usage: str, cache: str) -> Iterator[int]:
    """Yield the headroom of the group and of each above it that has a limit.

    In a container the path may be that of the host: what is visible then is the mount itself.
    """
    group = mount / path.strip("/")
    while group.is_relative_to(mount):
        limit_bytes = _number(group / limit)
        used_bytes = _number(group / usage)
        if limit_bytes is not None and used_bytes is not None and limit_bytes < _UNLIMITED_BYTES:
            yield limit_bytes - used_bytes + _statistic(group / "memory.stat", cache)
        group = group.parent


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _statistic(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.split()[0] == name)
