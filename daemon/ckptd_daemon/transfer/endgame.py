"""Who needs help at the end: the claim that would end last, by what came of it lately; pure.

A claim is looked at for some time before it is judged, so that a slow start is no reason. One
that stands still is helped only if others move meanwhile, or if it is the only one: when
everything stands still it is the origin, and asking more often does not help.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

LOOK_S = 0.25
LOOKS = 4  # over so many a rate is taken
LATE_S = 0.5  # whatever will be here sooner is not worth a connection
FELLOWS_FASTER = 4
SPLIT_MIN_BYTES = 1 << 20
EXTRA = 0.05  # of the object may come twice
EXTRA_MIN_BYTES = 1 << 20


class Coming(Protocol):
    """What is known of a claim."""

    @property
    def reached(self) -> int:
        """Up to where it has come, also within a piece."""

    @property
    def promised(self) -> int:
        """Up to where it is not to be cut."""

    @property
    def end(self) -> int:
        """Where it ends."""


@dataclass(frozen=True, slots=True)
class Help:
    """What to do for a claim: keep so many bytes more for it, or, if None, race its tail."""

    which: int
    keep_bytes: int | None


class EndGame:
    """Looks at the claims of one flight every `LOOK_S`."""

    def __init__(self, size_bytes: int) -> None:
        self._extra_bytes = max(EXTRA_MIN_BYTES, int(size_bytes * EXTRA))
        self._seen: dict[Coming, deque[tuple[float, int]]] = {}
        self._best_rate = 0.0

    def look(self, now: float, claims: Sequence[Coming]) -> None:
        """Note how far the claims are; called for all that come, whatever becomes of them."""
        seen: dict[Coming, deque[tuple[float, int]]] = {}
        for claim in claims:
            looks = seen[claim] = self._seen.get(claim, deque(maxlen=LOOKS + 1))
            reached = claim.reached
            if looks and reached < looks[-1][1]:
                looks.clear()  # it broke off, and begins again
            looks.append((now, reached))
        self._seen = seen
        self._best_rate = max([self._best_rate, *(self._rate(claim) for claim in claims)])

    def learn(self, bytes_per_s: float) -> None:
        """Learn what a claim brought that has ended, maybe between two looks."""
        self._best_rate = max(self._best_rate, bytes_per_s)

    def help(self, claims: Sequence[Coming]) -> Help | None:
        """Return what would bring the end nearer, if one more connection can."""
        rates = [self._rate(claim) for claim in claims]
        looked_at = [
            (self._late_s(claim, rate), n)
            for n, (claim, rate) in enumerate(zip(claims, rates, strict=True))
            if len(self._seen.get(claim, ())) > LOOKS and claim.reached < claim.end
        ]
        if not looked_at:
            return None
        late_s, n = max(looked_at)
        claim, rate = claims[n], rates[n]
        if late_s < LATE_S or not self._is_telling(claim, max([0.0, *rates[:n], *rates[n + 1 :]])):
            return None
        rest = claim.end - claim.promised
        keep_bytes = int(rest * rate / (rate + max(rate, self._best_rate))) if rate else 0
        if rest - keep_bytes >= SPLIT_MIN_BYTES:
            return Help(n, keep_bytes)
        tail = claim.end - claim.reached
        if tail > self._extra_bytes or rate > self._best_rate / 2:
            return None
        self._extra_bytes -= tail
        return Help(n, None)

    def _is_telling(self, claim: Coming, fellows_rate: float) -> bool:
        """Whether it is the claim's connection that is slow, rather than the origin."""
        if len(self._seen) == 1:
            return True
        moves = sum(rate > 0 for rate in self._rates(claim))
        return moves > 1 or self._rate(claim) * FELLOWS_FASTER < fellows_rate

    def _rate(self, claim: Coming) -> float:
        """Return the best rate between two looks, in bytes per second."""
        return max(self._rates(claim), default=0.0)

    def _rates(self, claim: Coming) -> list[float]:
        looks = self._seen.get(claim, ())
        return [
            (got - before) / (now - at)
            for (at, before), (now, got) in itertools.pairwise(looks)
            if now > at
        ]

    def _late_s(self, claim: Coming, rate: float) -> float:
        return (claim.end - claim.reached) / rate if rate else inf
