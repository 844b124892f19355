"""What the benchmark of restoring reads from its figures."""

from __future__ import annotations

from ckptd.bench.figures import Row, row
from ckptd.bench.restores import cases, targets
from ckptd.bench.restores.stage import Plan, resharding
from ckptd.bench.restores.ways import WAYS
from ckptd.cli import bench

BAR = targets.COPY


def loaded(name: str, restored_s: float) -> Row:
    return row(name, [{"restored_s": restored_s, "bytes_per_s": 1e9 / restored_s}])


def verdicts(ours_s: float, share: float = targets.COPY_SHARE) -> list[bool]:
    rows = [loaded("ckptd", ours_s), loaded(targets.DCP, 3), loaded(targets.TORCH, 2)]
    judged = targets.judge([*rows, loaded(BAR, 1)], BAR, share)
    return [verdict.is_met for verdict in judged]


def test_we_are_to_reach_a_share_of_the_bar_and_to_be_as_fast_as_the_best_of_torch() -> None:
    assert verdicts(1.0) == verdicts(1.4) == [True, True]
    assert verdicts(1.5) == [False, True]
    assert verdicts(1.4, targets.DISK_SHARE) == [False, True]
    assert verdicts(2.1) == [False, False]


def test_nothing_is_judged_without_our_figures() -> None:
    assert targets.judge([Row("ckptd", {}, "it failed"), loaded(BAR, 1)], BAR, 0.7) == ()


def test_what_is_resharded_is_loaded_by_another_number_of_ranks() -> None:
    assert [Plan(ranks=ranks).other_ranks for ranks in (1, 2, 3, 8)] == [2, 1, 1, 4]
    assert resharding((targets.DCP, targets.TORCH)) == (targets.DCP,)


def test_the_command_offers_what_there_is() -> None:
    assert tuple(cases.CASES) == bench._RESTORE_CASES
    assert tuple(WAYS) == ("ckptd", *bench._LOADS, targets.COPY)
