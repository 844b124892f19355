"""How long to wait before asking again, and when to give up."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.sources.source import TransientError
from ckptd_daemon.transfer import retry
from ckptd_daemon.transfer.hosts import GIVING_S, Hosts
from ckptd_daemon.transfer.retry import BASE_S, BORNE_S, CAP_S, Patience, delay_s
from ckptd_proto import errors

URL = "http://origin/model"
REFUSED = TransientError("the origin answers 503", is_throttled=True)
BROKEN = TransientError("the connection broke off")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses, which take no time here."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(retry.anyio, "sleep", sleep)
    return found


class Clock:
    """Has the time that the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(anyio, "current_time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@given(st.integers(0, 1000), st.floats(0, 1, exclude_max=True))
def test_no_wait_is_shorter_than_the_least_nor_longer_than_the_longest(
    failures: int, jitter: float
) -> None:
    assert BASE_S <= delay_s(failures, jitter) <= CAP_S


@given(st.integers(0, 20), st.floats(0, 1, exclude_max=True))
def test_each_failure_makes_the_wait_longer_until_it_is_the_longest(
    failures: int, jitter: float
) -> None:
    shorter, longer = delay_s(failures, jitter), delay_s(failures + 1, jitter)
    assert longer >= shorter
    if jitter > 0 and delay_s(failures, 1.0) < CAP_S / 3:
        assert longer - BASE_S == pytest.approx(3 * (shorter - BASE_S))


@pytest.mark.parametrize("failures", range(8))
def test_those_who_failed_together_do_not_come_back_together(failures: int) -> None:
    waits = [delay_s(failures, n / 100) for n in range(100)]
    assert len(set(waits)) == 100
    assert max(waits) - min(waits) > 0.9 * (min(CAP_S, BASE_S + BASE_S * 3**failures) - BASE_S)


async def test_the_wait_of_each_try_is_drawn_anew(waits: list[float]) -> None:
    for _ in range(20):
        await Patience("model", retries=1).wait(BROKEN)
    assert len(set(waits)) > 1


async def test_so_many_failures_in_a_row_are_enough(waits: list[float]) -> None:
    patience = Patience("model", retries=2)
    await patience.wait(BROKEN)
    await patience.wait(BROKEN)
    patience.succeeded()
    await patience.wait(BROKEN)
    await patience.wait(BROKEN)
    with pytest.raises(errors.Unavailable, match="given up after 3 tries"):
        await patience.wait(BROKEN)


async def test_a_refusal_of_a_host_that_gives_to_others_costs_no_try_and_ever_longer_waits(
    waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry.random, "random", lambda: 0.5)
    patience = Patience("model", retries=0, is_giving=lambda: True)
    for _ in range(10):
        await patience.wait(REFUSED)
    assert waits == sorted(waits)
    assert waits[0] < 1
    assert waits[-1] > 7
    with pytest.raises(errors.Unavailable):
        await patience.wait(BROKEN)


async def test_one_that_is_refused_for_good_while_others_are_served_is_given_up_all_the_same(
    waits: list[float], clock: Clock
) -> None:
    patience = Patience("model", retries=0, is_giving=lambda: True)
    await patience.wait(REFUSED)
    clock.now += BORNE_S - 1
    await patience.wait(REFUSED)
    clock.now += 1
    with pytest.raises(errors.Unavailable):
        await patience.wait(REFUSED)


def test_a_host_that_has_brought_nothing_for_a_while_counts_as_giving_no_more(
    clock: Clock,
) -> None:
    hosts = Hosts(start=8, streams_max=8)
    with hosts.share(URL, lambda: 1) as share:
        share.received(1, is_held=False)
        clock.now += GIVING_S
        share.received(0, is_held=False)
        assert not share.is_giving()
        assert not hosts.is_giving(URL)
        share.received(1, is_held=False)
        assert share.is_giving()
    assert hosts.is_giving(URL)


async def test_a_host_that_has_brought_nothing_yet_may_give_and_has_as_long_to_begin(
    waits: list[float], clock: Clock
) -> None:
    hosts = Hosts(start=8, streams_max=8)
    patience = Patience("model", retries=0, is_giving=lambda: hosts.is_giving(URL))
    for _ in range(20):
        await patience.wait(REFUSED)
    with hosts.share(URL, lambda: 1) as share:
        share.received(0, is_held=False)
        assert share.is_giving()
    clock.now += BORNE_S
    with pytest.raises(errors.Unavailable, match="the origin answers 503"):
        await patience.wait(REFUSED)


async def test_a_host_that_fails_without_being_asked_too_much_gets_no_such_time(
    waits: list[float],
) -> None:
    patience = Patience("model", retries=0, is_giving=lambda: True)
    with pytest.raises(errors.Unavailable):
        await patience.wait(BROKEN)
