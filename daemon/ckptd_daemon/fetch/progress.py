"""How far a flight is: written by the flight alone, read by whoever likes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """What a fetch is doing."""

    RESOLVING = "resolving"
    WAITING = "waiting"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    RETRYING = "retrying"


@dataclass(frozen=True, slots=True)
class Progress:
    """One reading of a gauge."""

    phase: Phase
    done_bytes: int = 0
    total_bytes: int | None = None
    streams: int = 0
    reason: str = ""
    """Why it waits, in words; empty while it moves."""


class Gauge:
    """What one flight says about itself."""

    def __init__(self) -> None:
        self.title = ""
        self.phase = Phase.RESOLVING
        self.total_bytes: int | None = None
        self.streams = 0
        self.reason = ""
        self.done_bytes: Callable[[], int] = int  # replaced by whoever counts

    def read(self) -> Progress:
        """Return where the flight is now."""
        return Progress(self.phase, self.done_bytes(), self.total_bytes, self.streams, self.reason)
