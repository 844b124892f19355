"""All cases, by name, in the order in which they are played."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ckptd.bench import convoy, daemons, ranks, transfers
from ckptd.bench.figures import Outcome
from ckptd.bench.stage import Stage

CASES: Mapping[str, Callable[[Stage], Outcome]] = {
    "plain": transfers.plain,
    "tls": transfers.tls,
    "limited": transfers.limited,
    "small": transfers.small,
    "sha256": transfers.sha256,
    "ranks-cold": ranks.cold,
    "ranks-warm": ranks.warm,
    "waiters": ranks.waiters,
    "ready": daemons.ready,
    "rest": daemons.rest,
    "convoy": convoy.convoy,
}


def play(stage: Stage, names: Sequence[str]) -> list[Outcome]:
    """Play the named cases, or all, in their order."""
    return [case(stage) for name, case in CASES.items() if not names or name in names]
