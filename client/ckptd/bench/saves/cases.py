"""The cases of `ckptd bench save`, in the order in which they are played."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ckptd.bench.figures import OURS, Outcome, Reading
from ckptd.bench.saves import targets
from ckptd.bench.saves.orders import Order
from ckptd.bench.saves.stage import Stage
from ckptd.bench.turns import take_turns

_HEADLINE = "durable_s"


def _race(
    stage: Stage, case: str, title: str, *, is_training: bool, loader: bool = False
) -> Outcome:
    """Have every way save in turn, over the rounds after the first, which does not count.

    In the first round what was saved is read back and compared.
    """

    def play(name: str, turn: int) -> Reading:
        if name == stage.bar.name:
            return _bar(stage)
        return _turn(stage, name, turn, is_training=is_training, loader=loader)

    names = (OURS, *stage.peers, stage.bar.name)
    rows = take_turns(case, names, stage.plan.repeats, play, stage.say)
    verdicts = targets.judge(rows, stage.bar.name)
    size = f"{stage.shape.ranks} ranks x {stage.shape.rank_bytes / 1e9:.2f} GB"
    return Outcome(case, f"{size}, {title}", _HEADLINE, rows, verdicts)


def _turn(stage: Stage, way: str, turn: int, *, is_training: bool, loader: bool) -> Reading:
    """Save twice, and return what the second time took: the first pays for memory and processes."""
    with stage.folder() as folder, stage.job(way, loader=loader) as job:
        job.save(Order(str(folder), 2 * turn, is_training=False, is_checked=turn == 0))
        reading = job.save(Order(str(folder), 2 * turn + 1, is_training, is_checked=False))
    return _rated(reading, stage.size_bytes)


def _bar(stage: Stage) -> Reading:
    with stage.folder() as folder:
        return _rated(stage.bar.write(folder, stage.size_bytes), stage.size_bytes)


def _rated(reading: Reading, size_bytes: int) -> Reading:
    return {**reading, "bytes_per_s": size_bytes / reading[_HEADLINE]}


def _steps(stage: Stage) -> Outcome:
    return _race(stage, "steps", "steps go on meanwhile", is_training=True)


def _loader(stage: Stage) -> Outcome:
    title = "steps and a data loader's worker go on meanwhile"
    return _race(stage, "loader", title, is_training=True, loader=True)


def _quiet(stage: Stage) -> Outcome:
    return _race(stage, "quiet", "nothing else runs", is_training=False)


CASES: Mapping[str, Callable[[Stage], Outcome]] = {
    "steps": _steps,
    "loader": _loader,
    "quiet": _quiet,
}


def play(stage: Stage, names: Sequence[str]) -> list[Outcome]:
    """Play the named cases, or all, in their order."""
    return [case(stage) for name, case in CASES.items() if not names or name in names]
