"""The cases of `ckptd bench restore`, in the order in which they are played."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ckptd.bench.figures import OURS, Outcome, Reading
from ckptd.bench.restores import targets
from ckptd.bench.restores.stage import Stage, resharding
from ckptd.bench.turns import take_turns

_HEADLINE = "restored_s"


def _race(
    stage: Stage, case: str, title: str, tier: str, *, ranks: int, peers: tuple[str, ...]
) -> Outcome:
    """Have every way load in turn; in the first round it is compared with what was saved."""
    is_disk = tier == "cold"
    bar = stage.bar.name if is_disk else targets.COPY

    def play(name: str, turn: int) -> Reading:
        if name == stage.bar.name:
            reading = stage.bar.read(stage.scratch, stage.size_bytes)
        else:
            is_checked = turn == 0 and name != targets.COPY
            reading = stage.load(name, tier, ranks, is_checked=is_checked)
        return {**reading, "bytes_per_s": stage.size_bytes / reading[_HEADLINE]}

    rows = take_turns(case, (OURS, *peers, bar), stage.plan.repeats, play, stage.say)
    share = targets.DISK_SHARE if is_disk else targets.COPY_SHARE
    verdicts = targets.judge(rows, bar, share)
    size = f"{stage.plan.ranks} ranks x {stage.rank_bytes / 1e9:.2f} GB"
    return Outcome(case, f"{size}, {title}", _HEADLINE, rows, verdicts)


def _memory(stage: Stage) -> Outcome:
    title = "in memory: ckptd's tier, and the page cache for the others"
    return _race(stage, "memory", title, "memory", ranks=stage.plan.ranks, peers=stage.peers)


def _cold(stage: Stage) -> Outcome:
    title = "from the disk, nothing in the page cache"
    return _race(stage, "cold", title, "cold", ranks=stage.plan.ranks, peers=stage.peers)


def _warm(stage: Stage) -> Outcome:
    title = "from files that are in the page cache"
    return _race(stage, "warm", title, "warm", ranks=stage.plan.ranks, peers=stage.peers)


def _reshard(stage: Stage) -> Outcome:
    ranks = stage.plan.other_ranks
    title = f"loaded by {ranks}, nothing in the page cache"
    peers = resharding(stage.peers)
    return _race(stage, "reshard", title, "cold", ranks=ranks, peers=peers)


CASES: Mapping[str, Callable[[Stage], Outcome]] = {
    "memory": _memory,
    "cold": _cold,
    "warm": _warm,
    "reshard": _reshard,
}


def play(stage: Stage, names: Sequence[str]) -> list[Outcome]:
    """Play the named cases, or all, in their order."""
    return [case(stage) for name, case in CASES.items() if not names or name in names]
