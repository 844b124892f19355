"""Seats are shared max-min fair, and nobody starves."""

from __future__ import annotations

from contextlib import ExitStack

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.sources.brakes import Brakes
from ckptd_daemon.transfer.climb import SAMPLE_S, Climb
from ckptd_daemon.transfer.hosts import Host, Hosts, Share

ONE, OTHER = "http://one/model", "http://other/model"


class Flight:
    """Takes what it gets, and gives back what it must."""

    def __init__(
        self,
        hosts: Hosts,
        stack: ExitStack,
        url: str,
        left_bytes: int = 1,
        *,
        is_urgent: bool = True,
    ) -> None:
        self.recalls = 0
        self.left_bytes = left_bytes
        self.share: Share = stack.enter_context(
            hosts.share(url, lambda: self.left_bytes, self._recall, lambda: is_urgent)
        )

    def _recall(self) -> bool:
        self.recalls += 1
        return True

    def fill(self) -> int:
        while self.share.take_nowait():
            pass
        return self.share.seats

    def reach_a_border(self) -> None:
        if self.share.seats and self.share.must_give:
            self.share.give()


def wait(hosts: Hosts, flight: Flight) -> anyio.Event:
    """Have *flight* wait for a seat; the event is set once it has one."""
    granted = anyio.Event()
    flight.share.waiting.append(granted)
    hosts.settle()
    return granted


def test_a_flight_alone_gets_what_its_host_bears() -> None:
    hosts = Hosts(start=8, streams_max=64)
    with ExitStack() as stack:
        assert Flight(hosts, stack, ONE).fill() == 8
        assert Flight(hosts, stack, ONE).fill() == 0
        assert Flight(hosts, stack, OTHER).fill() == 8


def test_a_flight_knows_how_many_seats_it_may_come_to_have() -> None:
    hosts = Hosts(start=8, streams_max=12)
    with ExitStack() as stack:
        one, other = Flight(hosts, stack, ONE), Flight(hosts, stack, OTHER)
        assert one.share.reach == 8
        one.share.take_nowait()
        assert one.share.reach == 8
        assert other.fill() == 8
        assert one.share.reach == 4
        peer = Flight(hosts, stack, ONE)
        wait(hosts, other)  # not for one of these: its host bears no more
        assert one.share.reach == 4
        peer.fill()
        wait(hosts, peer)
        assert one.share.reach == 1


def test_all_flights_together_keep_to_the_budget() -> None:
    hosts = Hosts(start=8, streams_max=12)
    with ExitStack() as stack:
        assert Flight(hosts, stack, ONE).fill() == 8
        assert Flight(hosts, stack, OTHER).fill() == 4
    assert hosts.seats == 0


async def test_a_flight_that_comes_later_ends_with_its_half() -> None:
    hosts = Hosts(start=8, streams_max=64)
    with ExitStack() as stack:
        rich, poor = Flight(hosts, stack, ONE), Flight(hosts, stack, ONE)
        rich.fill()
        async with anyio.create_task_group() as tasks:

            async def want() -> None:
                while True:
                    await poor.share.take()

            tasks.start_soon(want)
            for _ in range(20):
                await anyio.wait_all_tasks_blocked()
                rich.reach_a_border()
                poor.reach_a_border()
            assert (rich.share.seats, poor.share.seats) == (4, 4)
            assert rich.recalls == 1
            tasks.cancel_scope.cancel()


async def test_of_those_who_wait_the_one_with_least_to_bring_is_first() -> None:
    hosts = Hosts(start=1, streams_max=64)
    order = []
    with ExitStack() as stack:
        first = Flight(hosts, stack, ONE)
        first.fill()
        async with anyio.create_task_group() as tasks:

            async def want(name: str, flight: Flight) -> None:
                await flight.share.take()
                order.append(name)
                flight.share.give()

            for name, left_bytes in (("big", 1000), ("small", 10), ("middle", 100)):
                tasks.start_soon(want, name, Flight(hosts, stack, ONE, left_bytes))
            await anyio.wait_all_tasks_blocked()
            first.share.give()
    assert order == ["small", "middle", "big"]


async def test_who_leaves_the_queue_takes_no_seat_along() -> None:
    hosts = Hosts(start=1, streams_max=64)
    with ExitStack() as stack:
        first, second = Flight(hosts, stack, ONE), Flight(hosts, stack, ONE)
        first.fill()
        async with anyio.create_task_group() as tasks:

            async def want() -> None:
                await second.share.take()
                second.share.give()

            tasks.start_soon(want)
            await anyio.wait_all_tasks_blocked()
            first.share.give()
            tasks.cancel_scope.cancel()
        assert hosts.seats == second.share.seats == 0
        assert first.fill() == 1


def test_what_a_limit_of_ours_holds_is_no_collapse_of_the_host() -> None:
    for is_held in (True, False):
        host = Host(Climb(8, 8))
        host.seats = host.lowest_seats = 8
        for n in range(80):
            now, is_slow = n * SAMPLE_S, n >= 20
            host.is_held = is_held and is_slow
            host.received_bytes += 10_000 if is_slow else 1_000_000
            assert host.sample(now) or n == 0
            if host.climb.level < 8:
                break
        assert (host.climb.level == 8) == is_held


def test_a_level_is_judged_from_the_moment_it_is_reached() -> None:
    hosts = Hosts(start=8, streams_max=64)
    with ExitStack() as stack:
        flight = Flight(hosts, stack, ONE)
        found = []
        for n in range(9):
            found.append(flight.fill())  # a moment after the sample
            flight.share.host.received_bytes += 1_000_000 * flight.share.seats
            flight.share.host.sample(n * SAMPLE_S)
        assert found == [8, 8, 8, 8, 16, 16, 32, 32, 64]


def test_what_more_streams_bring_than_a_level_has_says_nothing_about_it() -> None:
    hosts = Hosts(start=8, streams_max=64)
    with ExitStack() as stack:
        flight = Flight(hosts, stack, ONE)
        host = flight.share.host
        flight.fill()
        host.climb.throttled(0.0)
        host.climb.throttled(10.0)
        assert host.climb.level == 2
        for n in range(40):
            if n >= 20:  # until then none has come to a border
                flight.reach_a_border()
            host.received_bytes += 1_000_000 * flight.share.seats
            host.sample(10.0 + n * SAMPLE_S)
        assert flight.share.seats == host.climb.level == 2


@pytest.mark.parametrize("dip_s", [6, 8, 20])
def test_a_network_that_recovers_before_streams_have_left_costs_none_for_long(dip_s: int) -> None:
    host = Host(Climb(48, 64))
    host.climb.ceiling = 48
    host.seats = host.lowest_seats = 48
    found = []
    for n in range(int(60 / SAMPLE_S)):
        now = n * SAMPLE_S
        is_dip = 10 <= now < 10 + dip_s
        if host.seats > host.climb.level and not is_dip:  # claims end again
            host.seats -= 1
            host.lowest_seats = min(host.lowest_seats, host.seats)
        while host.seats < host.climb.level:
            host.seated()
        host.received_bytes += host.seats * (1_000 if is_dip else 10_000)
        host.sample(now)
        found.append(host.climb.level)
    assert min(found) == 24
    assert min(found[int((12 + dip_s) / SAMPLE_S) :]) > 40


def test_a_flight_that_ends_leaves_no_seat_behind() -> None:
    hosts = Hosts(start=2, streams_max=2)
    with ExitStack() as stack:
        assert Flight(hosts, stack, ONE).fill() == 2  # and is cancelled before it uses them
    with ExitStack() as stack:
        assert Flight(hosts, stack, ONE).fill() == 2


async def test_a_level_that_falls_is_reached_at_the_next_borders() -> None:
    hosts = Hosts(start=8, streams_max=64)
    with ExitStack() as stack:
        flight = Flight(hosts, stack, ONE)
        flight.fill()
        flight.share.throttled()
        for _ in range(10):
            flight.reach_a_border()
        assert flight.share.seats == 4


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=60))
def test_no_budget_is_ever_exceeded(steps: list[tuple[int, bool]]) -> None:
    hosts = Hosts(start=3, streams_max=5)
    with ExitStack() as stack:
        flights = [Flight(hosts, stack, ONE if n % 2 else OTHER, n) for n in range(6)]
        for which, takes in steps:
            flight = flights[which]
            if takes:
                flight.share.take_nowait()
            elif flight.share.seats:
                flight.share.give()
            assert hosts.seats == sum(one.share.seats for one in flights) <= 5
            for one in flights:
                assert one.share.host.seats <= 3


def test_what_somebody_waits_for_goes_before_what_nobody_does() -> None:
    hosts = Hosts(start=8, streams_max=64)
    with ExitStack() as stack:
        ahead = Flight(hosts, stack, ONE, is_urgent=False)
        ahead.fill()
        urgent = Flight(hosts, stack, ONE)
        waiting = wait(hosts, urgent)
        assert ahead.recalls == 1
        ahead.share.give()
        assert waiting.is_set()
        for _ in range(7):  # every seat, one by one, and none of them back
            waiting = wait(hosts, urgent)
            ahead.reach_a_border()
            assert waiting.is_set()
        wait(hosts, ahead)
        assert (urgent.share.seats, urgent.share.must_give, urgent.recalls) == (8, False, 0)


def test_what_nobody_waits_for_gives_even_its_only_seat_to_who_has_none() -> None:
    hosts = Hosts(start=1, streams_max=64)
    with ExitStack() as stack:
        ahead = Flight(hosts, stack, ONE, is_urgent=False)
        ahead.fill()
        wait(hosts, Flight(hosts, stack, ONE, is_urgent=False))
        assert ahead.recalls == 0
        wait(hosts, Flight(hosts, stack, ONE))
        assert ahead.recalls == 1


def test_who_cannot_make_place_is_passed_over() -> None:
    hosts = Hosts(start=3, streams_max=64)
    with ExitStack() as stack:
        stuck = stack.enter_context(hosts.share(ONE, lambda: 1, bool, lambda: False))
        assert stuck.take_nowait()
        ahead = Flight(hosts, stack, ONE, is_urgent=False)
        ahead.fill()
        wait(hosts, Flight(hosts, stack, ONE))
        assert (stuck.is_recalled, ahead.recalls) == (False, 1)


async def test_who_stands_up_leaves_its_seat_to_another_flight_and_not_to_its_own() -> None:
    hosts = Hosts(start=2, streams_max=64)
    with ExitStack() as stack:
        first, second = Flight(hosts, stack, ONE), Flight(hosts, stack, ONE)
        first.fill()
        async with first.share.stood():
            assert (first.fill(), first.share.standing) == (1, 1)
            assert second.fill() == 1
            second.share.give()
        assert (first.share.seats, first.share.standing, second.share.seats) == (2, 0, 0)


async def test_who_stood_sits_down_before_others_of_its_flight() -> None:
    hosts = Hosts(start=2, streams_max=64)
    with ExitStack() as stack:
        first, second = Flight(hosts, stack, ONE), Flight(hosts, stack, ONE)
        first.fill()
        async with anyio.create_task_group() as tasks:
            resume = anyio.Event()

            async def stand() -> None:
                async with first.share.stood():
                    await resume.wait()

            tasks.start_soon(stand)
            await anyio.wait_all_tasks_blocked()
            recruit = wait(hosts, first)
            assert second.fill() == 1
            resume.set()
            await anyio.wait_all_tasks_blocked()
            second.share.give()
            await anyio.wait_all_tasks_blocked()
            assert (first.share.seats, recruit.is_set()) == (2, False)


@pytest.mark.parametrize("waits_for_a_seat", [False, True])
async def test_who_is_interrupted_while_it_stands_has_no_seat(waits_for_a_seat: bool) -> None:
    hosts = Hosts(start=1, streams_max=64)
    with ExitStack() as stack:
        first, second = Flight(hosts, stack, ONE), Flight(hosts, stack, ONE)
        first.fill()
        async with anyio.create_task_group() as tasks:

            async def stand() -> None:
                async with first.share.stood():
                    if not waits_for_a_seat:
                        await anyio.sleep_forever()

            second_waits = wait(hosts, second)
            tasks.start_soon(stand)
            await anyio.wait_all_tasks_blocked()
            assert second_waits.is_set()
            tasks.cancel_scope.cancel()
        share = first.share
        assert (share.seats, share.standing, list(share.waiting)) == (0, 0, [])
        second.share.give()
        assert first.fill() == 1


def test_of_those_who_wait_for_several_hosts_the_smallest_that_somebody_waits_for_is_first() -> (
    None
):
    hosts = Hosts(start=8, streams_max=1)
    with ExitStack() as stack:
        first = Flight(hosts, stack, ONE)
        first.fill()
        big, ahead, small = (
            Flight(hosts, stack, ONE, 100),
            Flight(hosts, stack, OTHER, 1, is_urgent=False),
            Flight(hosts, stack, OTHER, 2),
        )
        for one in (big, ahead, small):
            one.share.waiting.append(anyio.Event())
        for expected in (small, big, ahead):
            [holder] = [one for one in (first, big, ahead, small) if one.share.seats]
            holder.share.give()
            assert expected.share.seats == 1


async def test_questions_to_one_host_are_as_few_as_its_streams() -> None:
    hosts = Hosts(start=2, streams_max=64)
    asked: list[int] = []
    answer = anyio.Event()

    async def ask(number: int, url: str) -> None:
        async with hosts.asking(url):
            asked.append(number)
            await answer.wait()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(ask, number, ONE)
            tasks.start_soon(ask, 5, OTHER)
            await anyio.wait_all_tasks_blocked()
            assert asked == [0, 1, 5]
            answer.set()
    assert sorted(asked) == [0, 1, 2, 3, 4, 5]


async def test_a_host_that_refuses_any_request_gets_fewer() -> None:
    hosts = Hosts(start=8, streams_max=64)
    brakes = Brakes()
    brakes.on_throttled = hosts.throttled
    brakes.heed(ONE, 429, {}.get)
    with ExitStack() as stack:
        assert Flight(hosts, stack, ONE).fill() == 4
        assert Flight(hosts, stack, OTHER).fill() == 8
