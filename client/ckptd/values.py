"""The values users see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """What a daemon is, and does now."""

    version: str
    pid: int
    uid: int
    socket: str
    state_dir: str
    private: bool
    """Started on demand: ends by itself when nobody needs it."""
    idle: bool
    """Nothing is staged, leased or in flight."""
    stopping: bool
    uptime_s: float
    sessions: int
    """Client processes alive."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed checkpoint: complete, durable, and loadable by stock torch from `path`."""

    path: Path
    experiment: str
    run: str
    step: int
    uuid: str
    """Of the attempt that was committed."""
    size_bytes: int
    metrics: Mapping[str, float]
    committed_at: float
    """Seconds since the epoch, by the committing node's clock."""
