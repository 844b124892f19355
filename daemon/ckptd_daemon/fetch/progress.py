"""How far a flight is: written by the flight alone, read by whoever likes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from ckptd_daemon.sources.source import TransientError


class Phase(StrEnum):
    """What a fetch is doing."""

    RESOLVING = "resolving"
    WAITING = "waiting"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    RETRYING = "retrying"


class Cause(StrEnum):
    """Why a fetch does not move, or not faster."""

    NONE = ""
    ORIGIN = "origin"
    """It failed for now, or is silent."""
    THROTTLED = "throttled"
    """The origin asked us to slow down."""
    DISK = "disk"
    """No room on the disk, or the disk is the bottleneck."""
    QUOTA = "quota"
    """The cache is full of what is held."""
    HASH = "hash"
    """Everything is here; it is being checked."""
    LIMIT = "limit"
    """A bandwidth limit of the configuration."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One reading of a gauge."""

    phase: Phase
    done_bytes: int = 0
    total_bytes: int | None = None
    streams: int = 0
    reason: str = ""
    """Why it waits, in words; empty while it moves."""
    cause: Cause = Cause.NONE


class Gauge:
    """What one flight says about itself."""

    def __init__(self) -> None:
        self.title = ""
        self.phase = Phase.RESOLVING
        self.total_bytes: int | None = None
        self.streams = 0
        self.cause = Cause.NONE
        self.reason = ""
        self.done_bytes: Callable[[], int] = int  # replaced by whoever counts

    def enter(self, phase: Phase, cause: Cause = Cause.NONE, reason: str = "") -> None:
        """Be in *phase*, and say why that takes time if it is not for work alone."""
        self.phase, self.cause, self.reason = phase, cause, reason

    def retry(self, error: TransientError) -> None:
        """Be about to ask again."""
        cause = Cause.THROTTLED if error.is_throttled else Cause.ORIGIN
        self.enter(Phase.RETRYING, cause, str(error))

    def read(self) -> Progress:
        """Return where the flight is now."""
        return Progress(
            self.phase,
            self.done_bytes(),
            self.total_bytes,
            self.streams,
            self.reason,
            self.cause,
        )
