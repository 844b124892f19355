"""What the fetch half says about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from ckptd_daemon.fetch.flights import Flight
from ckptd_daemon.fetch.prefetches import Miss
from ckptd_daemon.transfer.progress import Gauge, Progress


@dataclass(frozen=True, slots=True)
class FlightStatistics:
    """One transfer now going on."""

    key: str
    title: str
    progress: Progress
    waiters: int

    @classmethod
    def of(cls, flight: Flight[Any], key: str) -> Self:
        """Read *flight*, which makes the blob called *key*, if any."""
        return cls(key, flight.gauge.title, flight.gauge.read(), flight.waiters)


@dataclass(frozen=True, slots=True)
class Statistics:
    """The fetch half at a glance. Sizes in bytes."""

    flights: tuple[FlightStatistics, ...]
    blobs: int
    used_bytes: int
    quota_bytes: int | None
    free_bytes: int
    leases: int
    misses: tuple[Miss, ...]


def unfinished(gauge: Gauge) -> str:
    """Say what is left to the next life of the daemon."""
    progress = gauge.read()
    total = "an unknown number of" if progress.total_bytes is None else progress.total_bytes
    return f"{progress.done_bytes} of {total} bytes of {gauge.title}"
