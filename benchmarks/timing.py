"""What the benchmarks share: contestants take turns, and a table shows medians and ratios."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence

import psutil
from rich.console import Console
from rich.table import Table

Figures = Mapping[str, float]
"""Seconds by what took them."""


def rotate(contestants: Mapping[str, Callable[[], Figures]], repeats: int) -> dict[str, Figures]:
    """Run each contestant *repeats* times, in turn and in changing order; return medians.

    One round comes before, so that nobody pays for first touches.
    """
    names = list(contestants)
    taken: dict[str, list[Figures]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
            figures = contestants[name]()
            if turn:
                taken[name].append(figures)
    return {
        name: {what: statistics.median(run[what] for run in runs) for what in runs[0]}
        for name, runs in taken.items()
    }


def show(title: str, medians: Mapping[str, Figures], ours: str) -> None:
    """Print seconds, and how many times ours they are."""
    columns: Sequence[str] = list(medians[ours])
    table = Table("", *(f"{what}, s" for what in columns), *(f"{what}, x" for what in columns))
    for name, figures in medians.items():
        ratios = [figures[what] / medians[ours][what] for what in columns]
        table.add_row(
            name, *(f"{figures[what]:.3f}" for what in columns), *(f"{r:.2f}" for r in ratios)
        )
    console = Console()
    memory = psutil.virtual_memory().total / 1e9
    console.print(f"{title}\n{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB")
    console.print(table)
