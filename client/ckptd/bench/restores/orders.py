"""What the conductor of the benchmark and a rank say to each other, a line of JSON each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Task:
    """Who a rank is, and what there is to load."""

    way: str
    rank: int
    ranks: int
    """Of the job that loads; another number has saved, if it is resharded."""
    saved_by: int
    """How many ranks have saved."""
    port: int
    memory: str
    """The directory in shared memory that holds the state of the ranks that have saved."""
    rank_bytes: int
    """Of each of them."""


@dataclass(frozen=True, slots=True)
class Order:
    """One save, off the clock, or one load."""

    folder: str
    is_save: bool = False
    is_checked: bool = False
    """Compare what was loaded; off the clock."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one rank saw of it."""

    took_s: float
    cpu_s: float = 0.0
    """Of this process, while it loaded."""
    problem: str = ""
    """How what was loaded differs; empty if it does not."""
