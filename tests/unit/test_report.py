"""What `ckptd status` shows is aligned, has units, and says what holds things up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckptd.cli.report import lines, size
from ckptd.values import (
    ArenaStatus,
    AttemptStatus,
    CacheStatus,
    DaemonStatus,
    FatedSave,
    FlightStatus,
    Miss,
    PreemptionStatus,
    RunStatus,
)

GB = 10**9
NOW = 1_000_000.0
IDLE = DaemonStatus(
    version="1.0",
    pid=4711,
    uid=0,
    socket="/run/ckptd/ckptd.sock",
    state_dir="/var/lib/ckptd",
    private=False,
    idle=True,
    stopping=False,
    uptime_s=3700.0,
    sessions=1,
    flights=(),
    attempts=(),
    cache=CacheStatus(2, 1, 12 * GB, 100 * GB, 812 * GB),
    arena=ArenaStatus(8, 2, 4 * GB, 32 * GB),
)
FLIGHT = FlightStatus(
    "k1", "https://h/a", "downloading", 3 * GB, 12 * GB, 8, 16, "", rate_bytes_per_s=GB, eta_s=9.0
)
RETRYING = FlightStatus("k2", "https://h/b", "retrying", 0, None, 1, 0, "the origin answers 503")
SAVE = AttemptStatus("a1", "/ckpts", "digits", "monday", 700, "staged", GB, 4 * GB, GB, 3.0)
BUSY = replace(IDLE, idle=False, flights=(FLIGHT, RETRYING), attempts=(SAVE,))


def test_an_idle_daemon_shows_its_room_and_says_that_nothing_is_going_on() -> None:
    assert lines(IDLE, NOW) == [
        "daemon  idle; ckptd 1.0, service, pid 4711",
        "up      1 h 1 min, 1 client process",
        "socket  /run/ckptd/ckptd.sock",
        "state   /var/lib/ckptd",
        (
            "cache   12.0 GB of 100.0 GB  "
            "12% of the quota; 2 blobs, 1 lease; 812.0 GB free on its disk"
        ),
        "arena     4.0 GB of 32.0 GB  12% of the budget; 8 slots, 2 of them idle",
        "",
        "Nothing is being fetched or saved.",
    ]


def test_a_daemon_whose_files_are_held_is_in_use_though_nothing_moves() -> None:
    held = lines(replace(IDLE, idle=False), NOW)
    assert held[0].startswith("daemon  in use;")
    assert held[-1] == "Nothing is being fetched or saved."


def test_a_busy_daemon_shows_what_moves_how_fast_and_who_waits() -> None:
    assert "; 2 blobs and 12.0 GB on its way, 1 lease;" in lines(BUSY, NOW)[4]
    assert lines(BUSY, NOW)[7:] == [
        "fetching",
        "  downloading  3.0 GB of 12.0 GB  25%  1.0 GB/s  9 s left  8 waiting, 16 streams",
        "    https://h/a",
        "  retrying                   0 B          0 B/s            1 waiting, 0 streams",
        "    https://h/b",
        "    the origin answers 503",
        "",
        "saving",
        "  staged  1.0 GB of 4.0 GB  25%  1.0 GB/s  3 s left  step 700 of digits/monday in /ckpts",
    ]


def test_a_prefetch_that_failed_is_told_with_its_age_and_what_to_do() -> None:
    miss = Miss("5f0c", "https://h/c", "NotFound", "there is no c; check the URL", NOW - 200)
    told = lines(replace(IDLE, misses=(miss,)), NOW)
    assert told[-3:] == [
        "not prefetched",
        "  https://h/c, 3 min 20 s ago",
        "    NotFound: there is no c; check the URL",
    ]


def test_a_draining_daemon_says_what_that_means() -> None:
    assert "draining (it takes nothing new" in lines(replace(BUSY, stopping=True), NOW)[0]


def test_a_node_that_goes_away_shows_how_long_it_has_and_what_is_saved() -> None:
    saves = (
        FatedSave("/c", "digits", "monday", 600, "superseded", "by step 700"),
        FatedSave("/c", "digits", "monday", 700, "saved", ""),
    )
    notice = PreemptionStatus("notice in /run/n", 95.0, True, saves)
    assert lines(replace(IDLE, preemption=notice), NOW)[9:] == [
        "this node goes away: 1 min 35 s left (notice in /run/n)",
        "  superseded  step 600 of digits/monday in /c  by step 700",
        "  saved       step 700 of digits/monday in /c",
    ]
    stopped = PreemptionStatus("the daemon was stopped", 0.0, False, ())
    assert lines(replace(IDLE, preemption=stopped), NOW)[9:] == [
        "this daemon ends: time is over (the daemon was stopped)"
    ]


def test_each_run_shows_how_old_its_newest_step_is_and_that_it_has_none() -> None:
    runs = (
        RunStatus("/c", "digits", "monday", 700, NOW - 200),
        RunStatus("/c", "digits", "friday", None, None),
    )
    assert lines(replace(IDLE, runs=runs), NOW)[-3:] == [
        "saved",
        "  digits/monday  step 700, 3 min 20 s ago in /c",
        "  digits/friday  none yet in /c",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (3_100_000_000, "3.1 GB"),
        (2 * 10**16, "20000.0 TB"),
    ],
)
def test_sizes_are_readable(count: int, text: str) -> None:
    assert size(count) == text
