"""What a flight says of itself: how fast, how long still, and what holds it up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.rpc.blobs import PROGRESS_MAX_PER_S, interval_s
from ckptd_daemon.sources.source import TransientError
from ckptd_daemon.transfer.bottleneck import Spent
from ckptd_daemon.transfer.progress import (
    HELD_S,
    RATE_S,
    SILENT_S,
    Cause,
    Gauge,
    Phase,
    Progress,
    Rate,
)


class Flying:
    """A gauge whose time and bytes the test moves."""

    def __init__(self, total_bytes: int | None = 1000) -> None:
        self.now = 100.0
        self.done_bytes = 0
        self.gauge = Gauge(lambda: self.now)
        self.gauge.total_bytes = total_bytes
        self.gauge.enter(Phase.DOWNLOADING)
        self.gauge.done_bytes = lambda: self.done_bytes

    def go(self, seconds: float, n_bytes: int) -> None:
        self.now += seconds
        self.done_bytes += n_bytes


def test_the_rate_is_what_came_and_the_rest_takes_as_long_at_it() -> None:
    flying = Flying()
    flying.go(2, 200)
    progress = flying.gauge.read()
    assert (progress.rate_bytes_per_s, progress.eta_s) == (100, 8)


def test_a_reading_of_its_first_moment_shows_no_speed() -> None:
    flying = Flying()
    flying.go(0.001, 500)
    progress = flying.gauge.read()
    assert (progress.rate_bytes_per_s, progress.eta_s) == (0, None)


def test_bytes_that_were_here_before_are_no_speed() -> None:
    flying = Flying()
    flying.done_bytes = 900
    flying.gauge.done_bytes = lambda: flying.done_bytes
    flying.go(1, 10)
    assert flying.gauge.read().rate_bytes_per_s == 10


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_any_number_of_readers_at_any_times_sees_the_same(reads: list[float]) -> None:
    """Another reader only adds samples of a steady flow."""
    rate = Rate()
    rate.begin(0, 0.0)
    now = 0.0
    for wait in reads:
        now += wait
        assert rate.read(round(now * 10**6), now) == pytest.approx(10**6 if now >= 0.1 else 0, 0.01)


def test_what_was_long_ago_counts_no_more() -> None:
    flying = Flying(10**9)
    flying.go(60, 10**6)
    for _ in range(50):
        flying.go(RATE_S / 40, 0)
        flying.gauge.read()
    assert flying.gauge.read().rate_bytes_per_s == 0


@pytest.mark.parametrize("phase", [each for each in Phase if each is not Phase.DOWNLOADING])
def test_nothing_moves_while_it_waits(phase: Phase) -> None:
    flying = Flying()
    flying.go(1, 100)
    flying.gauge.enter(phase)
    assert flying.gauge.read().rate_bytes_per_s == 0


def test_the_time_it_waited_is_not_held_against_the_speed_afterwards() -> None:
    flying = Flying()
    flying.gauge.retry(TransientError("the origin answers 503"))
    flying.go(60, 0)
    flying.gauge.enter(Phase.DOWNLOADING)
    flying.go(1, 100)
    assert flying.gauge.read().rate_bytes_per_s == 100


def test_bytes_that_were_thrown_away_are_no_negative_speed() -> None:
    flying = Flying()
    flying.go(1, 500)
    flying.gauge.read()
    flying.go(1, -500)
    assert flying.gauge.read().rate_bytes_per_s == 0


def test_a_limit_that_holds_it_is_named_until_it_does_no_more() -> None:
    flying = Flying()
    flying.gauge.held("1 MB/s by max_bytes_per_s", 5.0)
    flying.go(4, 10)
    progress = flying.gauge.read()
    assert (progress.cause, progress.reason) == (
        Cause.LIMIT,
        "held to 1 MB/s by max_bytes_per_s",
    )
    assert progress.rate_bytes_per_s > 0
    flying.go(1 + HELD_S, 10)
    assert flying.gauge.read().cause is Cause.NONE


def test_an_origin_that_falls_silent_is_the_cause_until_it_speaks_again() -> None:
    flying = Flying()
    flying.go(1, 10)
    assert flying.gauge.read().cause is Cause.NONE
    flying.go(SILENT_S + 1, 0)
    progress = flying.gauge.read()
    assert (progress.cause, progress.reason) == (Cause.ORIGIN, "nothing has come for 4 s")
    flying.go(1, 1)
    assert flying.gauge.read().cause is Cause.NONE


def test_a_silence_while_all_connections_wait_for_the_disk_is_the_disks() -> None:
    flying = Flying()
    flying.gauge.is_writing = lambda: True
    flying.go(SILENT_S + 1, 0)
    progress = flying.gauge.read()
    assert progress.cause is Cause.DISK
    assert progress.reason == "the disk takes its time: nothing was written for 4 s"
    flying.gauge.is_writing = lambda: False
    assert flying.gauge.read().cause is Cause.ORIGIN


@pytest.mark.parametrize(
    ("each_second", "cause"),
    [
        (Spent(wire_s=8, cpu_s=0.5), Cause.NETWORK),
        (Spent(wire_s=3, disk_s=5), Cause.DISK),
        (Spent(wire_s=1, disk_s=0.2, cpu_s=1.1), Cause.CPU),
        (Spent(wire_s=0.3, disk_s=0.1), Cause.NONE),
    ],
)
def test_what_moves_names_its_bottleneck_by_where_the_time_goes(
    each_second: Spent, cause: Cause
) -> None:
    flying, spent = Flying(), [Spent()]
    flying.gauge.spent = lambda: spent[0]
    assert flying.gauge.read().cause is Cause.NONE
    for _ in range(3):
        flying.go(1, 100)
        spent[0] += each_second
        progress = flying.gauge.read()
    assert progress.cause is cause
    assert bool(progress.reason) == bool(cause)


def test_a_limit_of_ours_goes_before_what_would_be_the_bottleneck_without_it() -> None:
    flying, spent = Flying(), [Spent()]
    flying.gauge.spent = lambda: spent[0]
    flying.gauge.read()
    flying.gauge.held("1 MB/s by max_bytes_per_s", 5.0)
    flying.go(3, 100)
    spent[0] += Spent(wire_s=20)
    assert flying.gauge.read().cause is Cause.LIMIT


def test_who_went_on_another_way_is_judged_by_that_alone() -> None:
    flying, spent = Flying(), [Spent(disk_s=1000)]
    flying.gauge.spent = lambda: spent[0]
    flying.gauge.read()
    for _ in range(3):
        flying.go(1, 100)
        spent[0] = Spent(wire_s=flying.now - 100)
        progress = flying.gauge.read()
    assert progress.cause is Cause.NETWORK


def a_part(phase: Phase, cause: Cause = Cause.NONE, reason: str = "") -> Progress:
    return Progress(phase, 0, None, 2, reason, cause)


MOVING = a_part(Phase.DOWNLOADING)
HELD = a_part(Phase.DOWNLOADING, Cause.LIMIT, "held")
BOUND = a_part(Phase.DOWNLOADING, Cause.NETWORK, "no more")
SILENT = a_part(Phase.DOWNLOADING, Cause.ORIGIN, "nothing has come for 4 s")
RETRYING = a_part(Phase.RETRYING, Cause.ORIGIN, "503")


@pytest.mark.parametrize(
    ("parts", "together"),
    [
        ([MOVING, RETRYING], (Phase.DOWNLOADING, Cause.NONE, "")),
        ([MOVING, HELD], (Phase.DOWNLOADING, Cause.LIMIT, "held")),
        ([SILENT, BOUND], (Phase.DOWNLOADING, Cause.NETWORK, "no more")),
        ([RETRYING, RETRYING], (Phase.RETRYING, Cause.ORIGIN, "503")),
    ],
)
def test_many_files_move_if_one_does_and_else_say_what_they_wait_for(
    parts: list[Progress], together: tuple[Phase, Cause, str]
) -> None:
    flying = Flying()
    flying.gauge.parts = lambda: parts
    progress = flying.gauge.read()
    assert (progress.phase, progress.cause, progress.reason) == together
    assert progress.streams == 4


def test_being_asked_to_slow_down_is_told_from_failing() -> None:
    flying = Flying()
    flying.gauge.retry(TransientError("the origin answers 429", is_throttled=True))
    assert flying.gauge.read().cause is Cause.THROTTLED
    flying.gauge.retry(TransientError("the connection broke off"))
    assert flying.gauge.read().cause is Cause.ORIGIN


@given(st.integers(1, 10**6))
def test_however_many_listen_the_daemon_says_so_much_a_second(listeners: int) -> None:
    assert listeners / interval_s(listeners) <= PROGRESS_MAX_PER_S * (1 + 1e-9)
