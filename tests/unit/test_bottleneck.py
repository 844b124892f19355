"""Where the time of a connection goes is read while it goes, from any thread."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.transfer.bottleneck import SEEN_S, WINDOW_S, Recent, Spent, Stopwatch, Work, words
from ckptd_daemon.transfer.progress import Cause

SECONDS = st.floats(0, 100)


def test_what_a_thread_is_still_at_counts_already() -> None:
    watch, has_begun, is_over = Stopwatch(), threading.Event(), threading.Event()

    def write() -> None:
        with watch.at(Work.WRITING):
            has_begun.set()
            is_over.wait(10)

    thread = threading.Thread(target=write)
    thread.start()
    assert has_begun.wait(10)
    assert watch.is_writing
    assert watch.read(time.monotonic() + 60).disk_s >= 60
    is_over.set()
    thread.join(10)
    assert not watch.is_writing
    spent = watch.read(time.monotonic() + 60)
    assert 0 < spent.disk_s < 60
    assert spent.wire_s == 0


def test_a_wait_takes_no_cpu_and_work_does() -> None:
    idle, busy = Stopwatch(), Stopwatch()
    with idle.at(Work.RECEIVING):
        time.sleep(0.05)
    with busy.at(Work.RECEIVING):
        while time.thread_time() == (began := time.thread_time()):
            assert began >= 0
        sum(range(10**6))
    waited, worked = idle.read(0), busy.read(0)
    assert waited.cpu_s < 0.5 * waited.wire_s
    assert worked.cpu_s > 0


def test_what_was_long_ago_counts_no_more() -> None:
    recent = Recent()
    recent.read(Spent(), 0.0)
    for second in range(1, 20):
        spent, elapsed_s = recent.read(Spent(disk_s=1, wire_s=float(second)), float(second))
    assert spent.disk_s == 0
    assert WINDOW_S <= elapsed_s <= WINDOW_S + 1


@given(SECONDS, SECONDS, SECONDS, st.floats(0, 100), st.integers(1, 64))
def test_any_time_has_a_name_that_is_a_cause(
    wire_s: float, disk_s: float, cpu_s: float, elapsed_s: float, cores: int
) -> None:
    cause, reason = words(Spent(wire_s, disk_s, cpu_s), elapsed_s, cores)
    assert Cause(cause) in {Cause.NONE, Cause.NETWORK, Cause.DISK, Cause.CPU}
    assert bool(cause) == bool(reason)
    if elapsed_s < SEEN_S:
        assert not cause


@pytest.mark.parametrize(("cpu_s", "cause"), [(7.0, "cpu"), (5.0, "network")])
def test_the_cpu_is_the_bottleneck_once_all_cores_are_busy_with_it(
    cpu_s: float, cause: str
) -> None:
    assert words(Spent(wire_s=32, cpu_s=cpu_s), 4, cores=2)[0] == cause
