"""How much memory staged saves may take: what the filesystem, the node and the cgroup leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil

from ckptd_daemon.store import durable
from ckptd_proto import errors

_CGROUPS: Final = Path("/sys/fs/cgroup")
_MEMBERSHIP: Final = Path("/proc/self/cgroup")
_UNLIMITED_BYTES: Final = 1 << 60  # version 1 says "no limit" by a huge number
_SCARCE_PERCENT: Final = 10


def room_bytes(arena_dir: Path) -> int:
    """Return what can be allocated in *arena_dir* now without anything running out."""
    memory = (headroom for headroom, _ in _headrooms())
    return max(0, min([durable.free_bytes(arena_dir), *memory]))


def check_room(directory: Path, size_bytes: int) -> None:
    """Raise `ResourceExhausted` if so much cannot be allocated now in *directory* of an arena."""
    if size_bytes > (room := room_bytes(directory)):
        text = (
            f"staging needs {size_bytes} bytes and {directory.parent} or the memory has {room} "
            f"free; free some, or enlarge it"
        )
        raise errors.ResourceExhausted(text, need_bytes=size_bytes, free_bytes=room)


def is_scarce() -> bool:
    """Say whether the node, or a control group we are in, has less than a tenth of its memory left."""
    return any(100 * headroom < _SCARCE_PERCENT * limit for headroom, limit in _headrooms())


def _headrooms() -> Iterator[tuple[int, int]]:
    """Yield what is left of each limit on memory, and the limit."""
    memory = psutil.virtual_memory()
    yield memory.available, memory.total
    yield from _cgroup_headrooms(_MEMBERSHIP.read_text())


def _cgroup_headrooms(membership: str) -> Iterator[tuple[int, int]]:
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            yield from _headrooms_above(_CGROUPS, path, *names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _headrooms_above(_CGROUPS / "memory", path, *names)


def _headrooms_above(
    mount: Path, path: str, limit: str, usage: str, cache: str
) -> Iterator[tuple[int, int]]:
    """Yield headroom and limit of the group and of each above it that has one.

    In a container the path may be that of the host: what is visible then is the mount itself.
    """
    group = mount / path.strip("/")
    while group.is_relative_to(mount):
        limit_bytes = _number(group / limit)
        used_bytes = _number(group / usage)
        if limit_bytes is not None and used_bytes is not None and limit_bytes < _UNLIMITED_BYTES:
            cache_bytes = _statistic(group / "memory.stat", cache)
            yield limit_bytes - used_bytes + cache_bytes, limit_bytes
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
