"""What a case measures, and what is read from it; pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

OURS = "ckptd"

Reading = Mapping[str, float]
"""What one run of one contestant took, by a name that ends in its unit."""


@dataclass(frozen=True, slots=True)
class Series:
    """The same figure over all rounds that count."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one, or the mean of the two in the middle."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The smallest."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The largest."""
        return max(self.values)


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant, or one way of using ckptd, in one case."""

    name: str
    figures: Mapping[str, Series]
    problem: str = ""
    """Why its figures do not count; empty if they do."""
    is_wrong: bool = False
    """It delivered other bytes than the source has."""

    def median(self, figure: str) -> float:
        """Return the median of *figure*."""
        return self.figures[figure].median


@dataclass(frozen=True, slots=True)
class Verdict:
    """One stated target beside what was measured."""

    text: str
    is_met: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one case."""

    case: str
    title: str
    headline: str
    """The figure that its bars show."""
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = field(default=())
    """Contestants that are not here, each with the reason."""

    def row(self, name: str) -> Row | None:
        """Return the row of *name*, if its figures count."""
        return next((row for row in self.rows if row.name == name and not row.problem), None)

    def ratio(self, row: Row) -> float | None:
        """Return how many times as long as ours *row* took."""
        ours = self.row(OURS)
        if ours is None or row.problem or self.headline not in row.figures:
            return None
        return row.median(self.headline) / ours.median(self.headline)


def row(name: str, readings: Sequence[Reading]) -> Row:
    """Return the row of what was read in each round."""
    names = readings[0].keys() if readings else ()
    series = {name: Series(tuple(reading[name] for reading in readings)) for name in names}
    return Row(name, series)


def order(contestants: Sequence[T], turn: int) -> list[T]:
    """Return who goes when in round *turn*: over as many rounds as they are, each goes first once.

    Odd rounds run backwards, so that nobody always follows the same one.
    """
    first = turn % len(contestants) if contestants else 0
    turned = [*contestants[first:], *contestants[:first]]
    return turned if turn % 2 == 0 else [turned[0], *reversed(turned[1:])]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of *values* that at least *share* of them do not exceed."""
    ordered = sorted(values)
    rank = -int(-share * len(ordered) // 1)  # rounded up
    return ordered[max(0, min(len(ordered), rank) - 1)]
