"""The values users see."""

from __future__ import annotations

from dataclasses import dataclass


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
