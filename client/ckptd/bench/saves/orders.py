"""What the conductor of the benchmark and a rank say to each other, a line of JSON each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Task:
    """Who a rank is, and what it saves."""

    way: str
    rank: int
    ranks: int
    port: int
    memory: str
    """The directory in shared memory that holds the state of all ranks."""
    rank_bytes: int
    loader: bool
    """A data loader's worker brings the batches."""


@dataclass(frozen=True, slots=True)
class Order:
    """One save."""

    folder: str
    step: int
    is_training: bool
    is_checked: bool
    """Read it back and compare; off the clock."""


@dataclass(slots=True)
class Report:
    """What one rank saw of a save. Seconds; of steps, the mean."""

    blocked_s: float
    durable_s: float
    before_s: float
    meanwhile_s: float
    steps: int
    """Until it was durable."""
    steps_cpu_s: float
    """What the training itself took, before and meanwhile."""
    problem: str = ""
    """How what was read back differs; empty if it does not."""

    @property
    def slower_share(self) -> float:
        """By what share of itself a step took longer while the save went on."""
        return self.meanwhile_s / self.before_s - 1
