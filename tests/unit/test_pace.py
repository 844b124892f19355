"""Bandwidth limits hold, are fair, and may change under those who sleep in them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.transfer.pace import (
    BURST_S,
    PIECE_MAX_BYTES,
    Bucket,
    Flow,
    Limits,
    Pace,
    Pacer,
    Ticket,
)
from fakes.waiting import eventually

URL = "https://models.example/a"
HOUR_S = 3600.0
LOOK_S = 0.01


class Taker:
    """Takes *n_bytes* again and again, in simulated time."""

    def __init__(self, bucket: Bucket, n_bytes: int, flow: Flow | None = None) -> None:
        self.bucket, self.n_bytes = bucket, n_bytes
        self.flow = flow or Flow()
        self.ticket: Ticket | None = None
        self.taken_bytes = 0

    def step(self, now: float) -> bool:
        """Take if it may; tells whether it took."""
        if self.ticket is None:
            self.ticket = self.bucket.claim(self.n_bytes, now, self.flow)
        if self.bucket.wait_s(self.ticket, now) > 0:
            return False
        self.ticket = None
        self.taken_bytes += self.n_bytes
        return True


rates = st.integers(1_000, 10**9)
steps = st.lists(st.floats(0.0, 5.0), min_size=1, max_size=30)


@given(rates, st.lists(st.integers(1, 1 << 20), min_size=1, max_size=8), steps)
def test_no_stretch_of_time_brings_more_than_rate_times_time_and_a_burst(
    rate: int, sizes: list[int], waits: list[float]
) -> None:
    now, total = 0.0, 0
    bucket = Bucket("limit", rate, now)
    takers = [Taker(bucket, size) for size in sizes]
    history = [(now, total)]
    for wait in waits:
        for _ in range(3):
            total += sum(taker.n_bytes for taker in takers if taker.step(now))
        history.append((now, total))
        now += wait
    burst = rate * BURST_S + max(sizes) + 1
    for at, (began, before) in enumerate(history):
        for ended, after in history[at:]:
            assert after - before <= rate * (ended - began) + burst


@given(rates, st.integers(2, 16), st.integers(1, 1 << 16))
def test_takers_of_equal_pieces_get_equal_shares(rate: int, count: int, size: int) -> None:
    bucket = Bucket("limit", rate, 0.0)
    takers = [Taker(bucket, size) for _ in range(count)]
    for tick in range(50):
        for taker in takers:
            taker.step(tick * size / rate)
    taken = [taker.taken_bytes for taker in takers]
    assert max(taken) - min(taken) <= 2 * size


def taken_bytes(bucket: Bucket, takers: list[Taker], seconds: float) -> None:
    """Have all of *takers* take what they may, as often as a thread would look."""
    for tick in range(int(seconds / LOOK_S)):
        for taker in takers:
            while taker.step(tick * LOOK_S):
                pass


@pytest.mark.parametrize("count", [1, 4, 15])
def test_flows_have_equal_shares_by_however_many_connections(count: int) -> None:
    bucket, flow = Bucket("limit", 1_000_000, 0.0), Flow()
    many = [Taker(bucket, 50_000, flow) for _ in range(count)]
    one = Taker(bucket, 50_000)
    taken_bytes(bucket, [*many, one], 10)
    assert one.taken_bytes == pytest.approx(sum(taker.taken_bytes for taker in many), rel=0.05)


def test_a_flow_that_had_all_before_others_came_has_no_more_than_they_from_then_on() -> None:
    bucket, flow = Bucket("limit", 1_000_000, 0.0), Flow()
    many = [Taker(bucket, 50_000, flow) for _ in range(15)]
    taken_bytes(bucket, many, 10)
    before = sum(taker.taken_bytes for taker in many)
    one = Taker(bucket, 50_000)
    for tick in range(int(10 / LOOK_S), int(20 / LOOK_S)):
        for taker in [*many, one]:
            taker.step(tick * LOOK_S)
    assert one.taken_bytes == pytest.approx(sum(t.taken_bytes for t in many) - before, rel=0.05)


def test_what_nobody_waits_for_comes_last_until_somebody_does() -> None:
    bucket, wanted = Bucket("limit", 1_000_000, 0.0), {"is": False}
    ahead = Flow(lambda: wanted["is"])
    many = [Taker(bucket, 50_000, ahead) for _ in range(15)]
    others = [Taker(bucket, 50_000) for _ in range(2)]
    taken_bytes(bucket, [*many, *others], 10)
    assert sum(taker.taken_bytes for taker in many) <= 15 * 50_000
    wanted["is"] = True  # for tickets that wait already, too
    before = sum(taker.taken_bytes for taker in many)
    for tick in range(int(10 / LOOK_S), int(20 / LOOK_S)):
        for taker in [*many, *others]:
            taker.step(tick * LOOK_S)
    taken = sum(taker.taken_bytes for taker in many) - before
    assert 10e6 / 3 * 0.95 <= taken <= 10e6 / 3 * 1.05 + 15 * 50_000


def test_what_nobody_waits_for_has_all_that_others_leave() -> None:
    bucket = Bucket("limit", 1_000_000, 0.0)
    ahead = Taker(bucket, 50_000, Flow(lambda: False))
    taken_bytes(bucket, [ahead], 10)
    assert ahead.taken_bytes == pytest.approx(10e6, rel=0.05)


@given(rates, rates, st.lists(st.integers(1, 1 << 20), min_size=1, max_size=8))
def test_a_new_rate_holds_for_those_who_wait_already(
    slow: int, fast: int, sizes: list[int]
) -> None:
    bucket = Bucket("limit", slow, 0.0)
    flow = Flow()
    tickets = [bucket.claim(size, 0.0, flow) for size in sizes]
    bucket.change(fast, 0.0)
    assert bucket.wait_s(tickets[-1], 0.0) == pytest.approx(sum(sizes) / fast)
    bucket.change(None, 0.0)
    assert bucket.wait_s(tickets[-1], 0.0) == 0


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_what_is_given_back_serves_others_and_no_more_than_that(kept: list[bool]) -> None:
    bucket, flow = Bucket("limit", 1000, 0.0), Flow()
    tickets = []
    for is_kept in kept:
        ticket = bucket.claim(100, 0.0, flow)
        if is_kept:
            tickets.append(ticket)
        else:
            bucket.give_back(ticket)
    for at, ticket in enumerate(tickets, start=1):
        assert bucket.wait_s(ticket, 0.0) == pytest.approx(at * 100 / 1000)


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.booleans()), min_size=1, max_size=20),
    st.data(),
)
def test_whoever_leaves_the_queue_holds_up_nobody_and_lets_nobody_pass(
    claims: list[tuple[int, bool]], data: st.DataObject
) -> None:
    rate = 1000
    bucket, flow = Bucket("limit", rate, 0.0), Flow()
    tickets = [(bucket.claim(size, 0.0, flow), size, leaves) for size, leaves in claims]
    leaving = [ticket for ticket, _, leaves in tickets if leaves]
    for ticket in data.draw(st.permutations(leaving)):
        bucket.give_back(ticket)
    before = 0
    for ticket, size, leaves in tickets:
        before += 0 if leaves else size
        if not leaves:
            assert bucket.wait_s(ticket, 0.0) == pytest.approx(before / rate)
    end_s = before / rate + 0.001
    assert all(bucket.wait_s(ticket, end_s) == 0 for ticket, _, leaves in tickets if not leaves)


def test_what_was_granted_and_is_given_back_late_holds_up_nobody() -> None:
    bucket, flow = Bucket("limit", 1000, 0.0), Flow()
    granted, asleep = bucket.claim(500, 0.0, flow), bucket.claim(500, 0.0, flow)
    assert bucket.wait_s(granted, 1.0) == 0
    bucket.give_back(granted)  # another limit held it, until it was interrupted
    assert bucket.wait_s(asleep, 1.0) == 0


@pytest.fixture
def pacer() -> Pacer:
    return Pacer(Limits())


def paced(pacer: Pacer, url: str = URL) -> Pace:
    return pacer.pace([url], lambda name, wait_s: None, Flow())


class Sleeper:
    """A thread that takes an hour's worth of bytes of *pace*."""

    def __init__(self, pacer: Pacer) -> None:
        self.sleeps = threading.Event()
        self.pace = pacer.pace([URL], lambda name, wait_s: self.sleeps.set(), Flow())
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._take)
        self._thread.start()
        assert self.sleeps.wait(10)

    def _take(self) -> None:
        try:
            self.pace.take(int(HOUR_S * 1000))
        except InterruptedError as error:
            self.error = error

    def has_ended(self) -> bool:
        return not self._thread.is_alive()


@pytest.fixture
def sleeper(pacer: Pacer) -> Iterator[Sleeper]:
    pacer.change(Limits(1000))
    found = Sleeper(pacer)
    yield found
    found.pace.interrupt()


def test_a_thread_asleep_in_a_limit_goes_on_at_once_when_it_is_lifted(
    pacer: Pacer, sleeper: Sleeper
) -> None:
    pacer.change(Limits())
    assert eventually(sleeper.has_ended)
    assert sleeper.error is None


def test_a_thread_asleep_in_a_limit_wakes_when_it_is_interrupted_and_takes_nothing(
    pacer: Pacer, sleeper: Sleeper
) -> None:
    sleeper.pace.interrupt()
    assert eventually(sleeper.has_ended)
    assert isinstance(sleeper.error, InterruptedError)
    (bucket,) = pacer.buckets(frozenset())
    assert pacer.wait_s(bucket, pacer.claim(bucket, 1, Flow())) < 1


async def test_a_task_asleep_in_a_limit_goes_on_at_once_when_it_is_lifted(pacer: Pacer) -> None:
    sleeps = anyio.Event()
    pacer.change(Limits(1000))
    pace = pacer.pace([URL], lambda name, wait_s: sleeps.set(), Flow())
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pace.take_async, int(HOUR_S * 1000))
            await sleeps.wait()
            pacer.change(Limits())


def test_without_a_limit_nothing_is_counted(pacer: Pacer) -> None:
    pace = paced(pacer)
    pace.take(1 << 50)
    assert pacer.buckets(frozenset()) == []
    assert pace.piece_bytes == PIECE_MAX_BYTES


@pytest.mark.parametrize(
    ("source", "applies"),
    [
        ("models.example", True),
        ("Models.Example", True),
        ("models.example:443", True),
        ("models.example:80", False),
        ("other.example", False),
    ],
)
def test_a_source_is_a_host_with_or_without_its_port(
    pacer: Pacer, source: str, applies: bool
) -> None:
    pacer.change(Limits(None, {source: 100_000}))
    assert (paced(pacer).piece_bytes < 10_000) == applies


def test_a_source_counts_for_what_it_redirects_elsewhere(pacer: Pacer) -> None:
    pacer.change(Limits(None, {"models.example": 100_000}))
    pace = pacer.pace([URL, "https://cdn.example/x"], lambda name, wait_s: None, Flow())
    assert pace.piece_bytes < 10_000


def test_who_waits_is_told_by_which_limit_it_is_held(pacer: Pacer) -> None:
    said: list[str] = []
    pacer.change(Limits(None, {"models.example": 1000}))
    pace = pacer.pace([URL], lambda name, wait_s: said.append(name), Flow())
    pace.interrupt()
    with pytest.raises(InterruptedError):
        pace.take(5000)
    assert said == ["0.001 MB/s by source_max_bytes_per_s of models.example"]
