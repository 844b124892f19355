"""What the benchmark of saving reads from its figures."""

from __future__ import annotations

from ckptd.bench.figures import Row, row
from ckptd.bench.saves import cases, memory, targets
from ckptd.bench.saves.orders import Report
from ckptd.cli import bench

BAR = "direct I/O"


def saved(name: str, blocked_ms: float, durable_s: float, **figures: float) -> Row:
    rate = {"bytes_per_s": 1e9 / durable_s}
    return row(name, [{"durable_s": durable_s, "blocked_ms": blocked_ms, **rate, **figures}])


def verdicts(*rows: Row) -> list[bool]:
    return [verdict.is_met for verdict in targets.judge(rows, BAR)]


def test_every_target_of_saving_is_judged_one_way_or_the_other() -> None:
    theirs, bar = saved(targets.ASYNC, 1000, 10), row(BAR, [{"durable_s": 0.9, "bytes_per_s": 1e9}])
    good = saved("ckptd", 150, 1.0, slower_share=0.1)
    fair = saved("ckptd", 330, 1.25, slower_share=0.25)
    bad = saved("ckptd", 331, 2.6, slower_share=0.26)
    assert verdicts(good, theirs, bar) == [True] * 7
    assert verdicts(fair, theirs, bar) == [True, False, True, False, True, True, False]
    assert verdicts(bad, theirs, bar) == [False] * 7


def test_nothing_is_judged_without_our_figures() -> None:
    assert verdicts(Row("ckptd", {}, "it failed"), saved(targets.ASYNC, 1, 1)) == []


def test_a_step_that_takes_half_as_long_again_is_half_slower() -> None:
    assert Report(0, 0, 0.010, 0.015, 3, 0).slower_share == 0.5


def test_a_state_is_made_of_whole_tensors() -> None:
    whole = memory.TENSORS * memory.ROW_BYTES
    assert memory.rank_bytes(1) == memory.rank_bytes(2 * whole - 1) == whole
    assert memory.rank_bytes(1 << 30) == 1 << 30


def test_the_command_offers_the_cases_that_there_are() -> None:
    assert tuple(cases.CASES) == bench._SAVE_CASES
