"""The level of a host follows what its streams bring, in simulated time."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.transfer.climb import SAMPLE_S, Climb

Host = Callable[[int, float], float]  # streams and time in seconds -> bytes per second


def levels(host: Host, seconds: float, climb: Climb | None = None, start_s: float = 0) -> list[int]:
    """The level after each sample."""
    climb = climb or Climb(8, 64)
    found = []
    for n in range(int(seconds / SAMPLE_S)):
        now = start_s + n * SAMPLE_S
        climb.sample(now, host(climb.level, now), is_full=True)
        found.append(climb.level)
    return found


def limited(per_stream: float, total: float) -> Host:
    return lambda level, now: min(level * per_stream, total)


def test_connections_that_are_limited_each_are_climbed_to_the_top() -> None:
    assert levels(limited(50e6, 1e12), 6)[-1] == 64


def test_a_host_that_is_full_keeps_the_level_that_filled_it() -> None:
    found = levels(limited(50e6, 800e6), 60)
    assert max(found) <= 32
    assert found[-1] == 16
    at_rest = [level for level in found[40:] if level == found[-1]]
    assert len(at_rest) > 0.9 * len(found[40:])


@pytest.mark.parametrize("start", [1, 2, 8])
@pytest.mark.parametrize("worth", [9, 11, 13, 21, 27, 40, 55])
def test_a_host_that_is_full_between_two_levels_is_filled_soon(worth: int, start: int) -> None:
    found = levels(limited(50e6, worth * 50e6), 10, Climb(start, 64))
    assert worth / 1.1 <= found[-1] < worth * 2


@pytest.mark.parametrize("start", [1, 2, 8])
def test_where_more_streams_bring_less_than_in_proportion_they_are_climbed_all_the_same(
    start: int,
) -> None:
    found = levels(lambda level, now: 50e6 * level**0.7, 10, Climb(start, 64))
    assert found[-1] == 64


@pytest.mark.parametrize("start", [1, 8])
def test_samples_that_scatter_hold_up_no_climb_for_long(start: int) -> None:
    for seed in range(40):
        scatter = random.Random(seed)
        climb = Climb(start, 64)
        levels(lambda level, now, by=scatter: level * 50e6 * by.uniform(0.85, 1.15), 120, climb)
        assert climb.level == 64


def test_a_host_that_refuses_what_it_took_for_a_while_is_left_alone_for_ever_longer() -> None:
    climb, refusals, over_s = Climb(8, 64), 0, 0.0
    for n in range(int(3600 / SAMPLE_S)):
        over_s = over_s + SAMPLE_S if climb.level > 16 else 0.0
        if over_s > 1:
            before = climb.level
            climb.throttled(n * SAMPLE_S)
            refusals += climb.level < before
        climb.sample(n * SAMPLE_S, climb.level * 50e6, is_full=True)
    assert refusals < 20


def test_while_each_stream_brings_as_much_twice_as_many_are_soon_tried() -> None:
    found = levels(limited(50e6, 1e12), 6)
    assert found.index(64) * SAMPLE_S < 2


def test_connections_that_take_a_while_to_get_up_to_speed_are_waited_for() -> None:
    """Over one and a half seconds, as TCP does over a long way."""
    since_s, before, base, brings = 0.0, 8, 0.0, 0.0

    def host(level: int, now: float) -> float:
        nonlocal since_s, before, base, brings
        if level != before:
            since_s, before, base = now, level, brings
        aim = min(level, 32) * 10e6
        brings = base + (aim - base) * min(1.0, (now - since_s + SAMPLE_S) / 1.5)
        return brings

    assert levels(host, 12)[-1] == 32


def test_streams_that_bring_nothing_more_are_given_back() -> None:
    found = levels(lambda level, now: 1e9, 30)
    assert found[-1] == 8
    assert sum(level > 8 for level in found) * SAMPLE_S < 4


def test_a_refusal_halves_once_a_moment() -> None:
    climb = Climb(8, 64)
    climb.throttled(0)
    climb.throttled(0.1)
    assert climb.level == 4
    climb.throttled(2)
    assert climb.level == 2
    for now in range(4, 100, 2):
        climb.throttled(now)
    assert climb.level == 1


def test_after_a_refusal_it_is_long_until_more_is_tried() -> None:
    climb = Climb(8, 64)
    climb.throttled(0)
    assert set(levels(limited(50e6, 1e12), 10, climb)) == {4}
    assert max(levels(limited(50e6, 1e12), 60, climb, 10)) > 4


@pytest.mark.parametrize("collapses_above", [10, 20, 40])
def test_a_host_that_collapses_above_some_level_is_taken_there_once(collapses_above: int) -> None:
    def host(level: int, now: float) -> float:
        return level * 50e6 if level <= collapses_above else 5e6

    climb = Climb(8, 64)
    first = levels(host, 60, climb)
    assert max(first) > collapses_above
    assert climb.level <= collapses_above
    assert climb.level >= collapses_above // 2
    later = levels(host, 3600, climb, 60)
    assert sum(level > collapses_above for level in later) < 0.02 * len(later)


def test_a_collapse_that_comes_late_is_not_climbed_into_again() -> None:
    """A host that lets itself be overrun for a while before it slows everyone down."""
    overrun_s = 0.0

    def host(level: int, now: float) -> float:
        nonlocal overrun_s
        overrun_s = overrun_s + SAMPLE_S if level > 16 else 0.0
        return level * 50e6 if overrun_s < 5 else 1e6

    climb = Climb(8, 64)
    levels(host, 60, climb)
    highest = climb.ceiling
    assert highest < 64
    later = levels(host, 3600, climb, 60)
    assert sum(level > highest for level in later) < 0.05 * len(later)


def test_a_network_that_gets_slower_by_itself_costs_no_stream_for_ever() -> None:
    def host(level: int, now: float) -> float:
        return min(level * 50e6, 800e6 if now < 20 else 200e6)

    climb = Climb(8, 64)
    before = levels(host, 20, climb)[-1]
    after = levels(host, 100, climb, 20)
    assert after[-1] >= min(before, 8)
    assert climb.ceiling == 64


def test_an_outage_costs_no_stream() -> None:
    def host(level: int, now: float) -> float:
        return 0.0 if 20 <= now < 24 else level * 50e6

    climb = Climb(8, 64)
    assert levels(host, 20, climb)[-1] == 64
    assert set(levels(host, 40, climb, 20)) == {64}


def test_a_dip_that_looked_like_too_many_streams_is_forgotten_after_a_while() -> None:
    def host(level: int, now: float) -> float:
        return level * (1e6 if 20 <= now < 22 else 50e6)

    climb = Climb(8, 64)
    assert levels(host, 20, climb)[-1] == 64
    assert levels(host, 40, climb, 20)[-1] < 64
    assert levels(host, 1000, climb, 60)[-1] == 64


def test_samples_of_idle_streams_say_nothing() -> None:
    climb = Climb(8, 64)
    for n in range(100):
        climb.sample(n * SAMPLE_S, 1e6 * n, is_full=False)
    assert climb.level == 8


@given(
    st.integers(1, 64),
    st.integers(1, 64),
    st.lists(
        st.tuples(st.floats(0, 1e10), st.booleans(), st.booleans(), st.floats(0.0, 30.0)),
        max_size=200,
    ),
)
def test_the_level_stays_between_one_and_the_ceiling(
    start: int, streams_max: int, steps: list[tuple[float, bool, bool, float]]
) -> None:
    climb, now = Climb(start, streams_max), 0.0
    for bytes_per_s, is_full, is_throttled, passed_s in steps:
        now += passed_s
        if is_throttled:
            climb.throttled(now)
        else:
            climb.sample(now, bytes_per_s, is_full=is_full)
        assert 1 <= climb.level <= climb.ceiling <= streams_max
