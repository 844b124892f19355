"""What the benchmark reads from its figures."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.bench import report, targets
from ckptd.bench.cases import CASES
from ckptd.bench.figures import Outcome, Row, Series, order, percentile, row
from ckptd.bench.machine import Machine
from ckptd.bench.origin import Request, mean_streams
from ckptd.bench.processes import version_of
from ckptd.cli import bench


def measured(name: str, wall_s: float, cpu_s: float, **figures: float) -> Row:
    return row(name, [{"wall_s": wall_s, "cpu_s": cpu_s, "peak_bytes": 1e6, **figures}])


OURS = measured("ckptd", 1.0, 1.0, daemon_anon_bytes=2e8)
MACHINE = Machine("today", "a cpu", 2, 1 << 34, "Linux 6", "ext4", {"ckptd": "1"}, {}, 0.0)


def test_a_row_says_the_median_of_each_figure_and_how_far_it_went() -> None:
    series = row("a", [{"wall_s": value} for value in (3.0, 1.0, 2.0, 9.0)]).figures["wall_s"]
    assert (series.median, series.low, series.high) == (2.5, 1.0, 9.0)


@given(st.integers(1, 8))
def test_over_as_many_rounds_as_contestants_each_goes_first_once(count: int) -> None:
    names = [str(index) for index in range(count)]
    rounds = [order(names, turn) for turn in range(count)]
    assert all(sorted(turn) == sorted(names) for turn in rounds)
    assert Counter(turn[0] for turn in rounds) == Counter(names)


def test_nobody_always_follows_the_same_one() -> None:
    names = ["a", "b", "c", "d"]
    followed = {name: set() for name in names}
    for turn in range(4):
        going = order(names, turn)
        for earlier, later in pairwise(going):
            followed[later].add(earlier)
    assert all(len(before) > 1 for before in followed.values())


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_the_smallest_that_so_many_do_not_exceed(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    within = sum(value <= found for value in values)
    assert within >= share * len(values) - 1e-6
    below = [value for value in values if value < found]
    assert not below or sum(value <= max(below) for value in values) < share * len(values)


def test_a_ratio_is_how_many_times_ours_another_took() -> None:
    outcome = Outcome("plain", "", "wall_s", (OURS, measured("curl", 2.5, 1.0)))
    assert [outcome.ratio(row) for row in outcome.rows] == [1.0, 2.5]
    without = Outcome("plain", "", "wall_s", (measured("curl", 2.5, 1.0),))
    assert without.ratio(without.rows[0]) is None


def test_a_target_is_judged_against_the_best_peer_and_a_miss_is_said_as_plainly() -> None:
    peers = measured("curl", 4.0, 0.9), measured("aria2c", 2.5, 3.0), measured("obstore", 0.9, 5.0)
    broken = Row("rclone", {}, "exit code 1")
    found = [report.verdict(one) for one in targets.transfer((OURS, *peers, broken), targets.PLAIN)]
    assert found == [
        "met    wall, beside the best downloader (aria2c), 0.40x, to be at most 0.50x",
        "MISSED the same, as aimed at, 0.40x, to be at most 0.25x",
        "MISSED wall, beside obstore's ranges, 1.11x, to be at most 1.00x",
        "MISSED CPU seconds, beside the least (curl), 1.00, to be at most 0.90",
        "met    the daemon's RssAnon, at worst, 200 MB, to be at most 300 MB",
    ]
    assert targets.transfer((*peers,), targets.PLAIN) == ()


@pytest.mark.parametrize(
    ("share", "busy", "is_met"),
    [(0.96, 0.1, True), (0.9, 0.5, False), (0.9, 0.99, True)],  # the cores were full
)
def test_limited_connections_are_used_up_unless_the_cores_are(
    share: float, busy: float, is_met: bool
) -> None:
    ours = row("ckptd", [{"stream_share": share, "busy_share": busy, "streams": 40.0}])
    assert targets.limited(ours).is_met is is_met


def test_the_number_of_streams_is_judged_by_the_best_of_those_that_were_tried() -> None:
    fixed = [row(f"{wall_s}", [{"wall_s": wall_s}]) for wall_s in (2.0, 1.0, 1.5)]
    assert targets.chosen(row("ckptd", [{"wall_s": 1.1}]), fixed).is_met
    assert not targets.chosen(row("ckptd", [{"wall_s": 1.2}]), fixed).is_met


@pytest.mark.parametrize(
    ("wall_s", "native_s", "is_met"),
    [
        (10.0, None, True),
        (11.0, None, False),
        (11.0, 10.6, True),  # the machine was full
        (11.0, 10.3, False),
        (10.0, 5.0, True),
    ],
)
def test_streams_that_are_fixed_are_used_up_unless_the_machine_is(
    wall_s: float, native_s: float | None, is_met: bool
) -> None:
    native = None if native_s is None else row("C, 4 connections", [{"wall_s": native_s}])
    ours = row("ckptd", [{"wall_s": wall_s}])
    verdict = targets.fixed(4, 4 * 10 * 50_000_000, ours, native)
    assert verdict.is_met is is_met
    assert "4 streams" in verdict.text


def test_a_connection_counts_as_a_stream_while_it_waits_between_its_requests() -> None:
    requests = [
        Request("1", 1.0, 1.0, 5),
        Request("1", 4.0, 1.0, 5),  # from 3 to 4, so open from 0 to 4
        Request("2", 2.0, 2.0, 5),
        Request("3", 4.0, 4.0, 0),  # only asked
    ]
    assert mean_streams(requests, 4.0) == (4.0 + 2.0) / 4.0


def test_a_connection_that_took_less_than_the_origin_can_tell_counts_as_well() -> None:
    assert mean_streams([Request("1", 1.0, 0.0, 5)], 0.01) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("said", "version"),
    [("curl 7.88.1 (x86_64)", "7.88.1"), ("rclone v1.60.1-DEV", "1.60.1-DEV"), ("", "unknown")],
)
def test_a_version_is_found_in_what_a_program_says(said: str, version: str) -> None:
    assert version_of(said) == version


def test_the_table_shows_the_fastest_first_and_why_others_do_not_count() -> None:
    rows = (OURS, measured("curl", 0.5, 1.0), Row("rclone", {}, "exit code 1"))
    laid = report.grid(Outcome("plain", "", "wall_s", rows))
    assert laid.headings == ["", "wall, s", "min to max", "x ckptd", "CPU, s", "RAM, MB"]
    assert [cells[0] for cells in laid.rows] == ["curl", "ckptd"]
    assert laid.rows[0][1:4] == ["0.50", "0.50 to 0.50", "0.50"]
    assert laid.problems == [("rclone", "exit code 1")]


def test_markdown_has_losses_beside_wins() -> None:
    rows = OURS, measured("curl", 0.5, 2.0)
    verdicts = targets.transfer(rows, targets.PLAIN)
    missing = ("aria2c: not installed (apt-get install aria2)",)
    outcome = Outcome("plain", "one object", "wall_s", rows, verdicts, missing=missing)
    said = report.markdown(MACHINE, [outcome])
    assert "| **ckptd** | **1.00** | 1.00 to 1.00 | 1.00 | 1.00 | 1 |" in said
    assert "- **missed**: wall, beside the best downloader (curl), 2.00x" in said
    assert "- **met**: CPU seconds, beside the least (curl), 1.00, to be at most 2.00" in said
    assert "- aria2c: not installed (apt-get install aria2)" in said


def test_every_figure_that_a_bar_shows_has_a_column() -> None:
    for name in ("wall_s", "p50_ms", "anon_bytes"):
        assert report.COLUMNS[name].heading


def test_the_command_offers_what_there_is() -> None:
    from ckptd.bench.contestants import PEERS

    assert list(CASES) == list(bench._CASES)
    assert set(PEERS) == set(bench._PEERS)


def test_a_series_of_one_is_its_own_median() -> None:
    assert Series((2.0,)).median == 2.0
