"""Every byte of a partial is written once, whatever is cut, raced, broken off and begun again."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.store.journal import Header
from ckptd_daemon.transfer.plan import Claim, Plan
from ckptd_proto.crc import crc32c

PAGE = 4096
CHUNK = 4 * PAGE
SIZE = 6 * CHUNK + 2 * PAGE + 17
HEADER = Header("o", "t", "v", "n", size_bytes=SIZE, chunk_bytes=CHUNK, is_resumable=True)
DATA = bytes(i * 31 % 251 for i in range(SIZE))


class Disk:
    """Takes what claims settle, and complains about a byte that is written twice."""

    def __init__(self) -> None:
        self.plan = Plan(HEADER, range(HEADER.chunk_count))
        self.written = bytearray(SIZE)
        self.landed: dict[int, int] = {}
        self.ended: list[Claim] = []

    def land(self, claim: Claim) -> None:
        length = claim.settle()
        if length <= 0:
            return
        assert claim.at % PAGE == 0
        assert not any(self.written[claim.at : claim.at + length])
        self.written[claim.at : claim.at + length] = b"\1" * length
        checksum = crc32c(DATA[claim.at : claim.at + length])
        if (chunk := claim.wrote(length, checksum)) is not None:
            assert chunk[0] not in self.landed
            self.landed[chunk[0]] = chunk[1]

    def receive(self, claim: Claim, piece_bytes: int, buffer_bytes: int) -> None:
        """Receive one piece, and write the block that it fills."""
        if claim.block_end <= claim.at and not claim.block(buffer_bytes):
            return
        claim.came(claim.promise(piece_bytes))
        if claim.got >= min(claim.block_end, claim.end):
            self.land(claim)
            claim.block_end = claim.at

    def step(self, what: str, which: int, amount: int) -> None:
        claims = self.plan.claims
        if what == "claim" or not claims:
            if (found := self.plan.next([amount % 7], is_whole=which % 3 > 0)) is not None:
                self.plan.claim(*found).asks()
            return
        claim = claims[which % len(claims)]
        match what:
            case "receive":
                self.receive(claim, amount + 1, (amount % 4 + 1) * PAGE)
            case "break":
                self.land(claim)
                claim.asks()
            case "end":
                self.plan.end(claim)
                self.ended.append(claim)
            case "split":
                self.plan.split(claim, amount)
            case "race":
                self.plan.race(claim)
            case "help late" if self.ended:
                late = self.ended[which % len(self.ended)]
                assert self.plan.split(late, amount) is None
                assert self.plan.race(late) is None

    def finish(self) -> None:
        while not self.plan.is_done:
            if (found := self.plan.next([], is_whole=True)) is not None:
                self.plan.claim(*found).asks()
            for claim in self.plan.claims:
                while not claim.is_over:
                    before = claim.got, claim.at
                    self.receive(claim, CHUNK, CHUNK)
                    assert claim.is_over or (claim.got, claim.at) != before
                self.plan.end(claim)


ACTS = st.sampled_from(
    ["claim", "receive", "receive", "break", "end", "split", "race", "help late"]
)


@given(st.lists(st.tuples(ACTS, st.integers(0, 20), st.integers(0, 2 * CHUNK)), max_size=60))
def test_every_byte_is_written_once_and_every_chunk_gets_its_checksum(
    steps: list[tuple[str, int, int]],
) -> None:
    disk = Disk()
    for step in steps:
        disk.step(*step)
        assert 0 <= disk.plan.left_bytes <= SIZE
    disk.finish()
    assert all(disk.written)
    assert disk.plan.left_bytes == 0
    assert disk.landed == {
        index: crc32c(DATA[slice(*HEADER.extent(index))]) for index in range(HEADER.chunk_count)
    }


def test_what_is_urgent_is_claimed_first_then_the_rest_in_order() -> None:
    plan = Plan(HEADER, range(HEADER.chunk_count))
    found = plan.next([4, 5, 1], is_whole=True)
    assert found == (4 * CHUNK, 6 * CHUNK)
    plan.claim(*found)
    found = plan.next([4, 5, 1], is_whole=True)
    assert found == (CHUNK, 2 * CHUNK)
    plan.claim(*found)
    assert plan.next([4, 5, 1], is_whole=False) is None
    assert plan.next([4, 5, 1], is_whole=True) == (0, CHUNK)


def test_a_chunk_is_whole_only_if_every_byte_of_it_was_written() -> None:
    plan = Plan(HEADER, range(HEADER.chunk_count))
    assert plan.joined(0, 2 * PAGE, 1) is None
    assert plan.joined(0, 2 * PAGE, 1) is None  # the same again: no more than half of it
    plan = Plan(HEADER, range(HEADER.chunk_count))
    assert plan.joined(0, 2 * PAGE, 1) is None
    assert plan.joined(3 * PAGE, PAGE, 1) is None
    assert plan.joined(2 * PAGE, PAGE, 1) is not None


class Wanted(dict[int, None]):
    """Counts the chunks that are looked at."""

    looked_at = 0

    def __iter__(self) -> Iterator[int]:
        for index in super().__iter__():
            self.looked_at += 1
            yield index


def test_to_find_what_is_next_looks_at_no_more_chunks_than_are_being_brought() -> None:
    count = 10_000
    header = Header("o", "t", "v", "n", count * CHUNK, chunk_bytes=CHUNK, is_resumable=True)
    plan, wanted = Plan(header, range(count)), Wanted.fromkeys(range(count))
    for _ in range(64):
        found = plan.next(wanted, is_whole=False)
        assert found is not None
        plan.claim(*found)
    wanted.looked_at = 0
    plan.next(wanted, is_whole=False)
    assert wanted.looked_at <= 2 * 64 + 1


def test_a_racer_and_what_it_races_never_both_write() -> None:
    for winner in (0, 1):
        disk = Disk()
        claim = disk.plan.claim(0, CHUNK)
        claim.asks()
        claim.block(CHUNK)
        claim.came(claim.promise(PAGE + 5))
        racer = disk.plan.race(claim)
        assert racer is not None
        assert (racer.start, racer.end) == (PAGE, CHUNK)
        racer.asks()
        racer.block(CHUNK)
        both = (claim, racer)
        for one in (both[winner], both[1 - winner]):
            one.came(one.promise(CHUNK))
            disk.land(one)
        assert both[1 - winner].is_beaten
        assert disk.landed == {0: crc32c(DATA[:CHUNK])}


def test_a_request_is_for_the_more_the_more_is_left_for_each_connection() -> None:
    count = 128
    header = Header("o", "t", "v", "n", count * CHUNK, CHUNK, is_resumable=True)
    plan, asked = Plan(header, range(count)), []
    while (found := plan.next([], is_whole=True)) is not None:
        asked.append((found[1] - found[0]) // CHUNK)
        plan.claim(*found)
    assert asked == sorted(asked, reverse=True)
    assert (asked[0], asked[-1], sum(asked)) == (4, 1, count)
    assert len(asked) > 40, "each of many connections gets something"


MIB = 1 << 20


@pytest.mark.parametrize(("size_mib", "first_mib"), [(16, 1), (128, 2), (1024, 4)])
def test_what_nobody_can_cut_off_is_a_small_part_of_all_and_of_its_claim(
    size_mib: int, first_mib: int
) -> None:
    header = Header("o", "t", "v", "n", size_mib * MIB, 16 * MIB, is_resumable=True)
    claim = Plan(header, [0]).claim(0, 16 * MIB)
    claim.asks()
    claim.block(16 * MIB)
    assert claim.promise(8 * MIB) == first_mib * MIB
    claim.came(13 * MIB)
    assert claim.promise(8 * MIB) == MIB
    claim.came(5 * MIB // 2)
    assert claim.promise(8 * MIB) == MIB // 2


def brought_in_s(rates: Sequence[float], size_bytes: int) -> tuple[float, int]:
    """How long streams of such rates take for all of it, and by how many requests."""
    header = Header("o", "t", "v", "n", size_bytes, 16 * MIB, is_resumable=True)
    plan, requests = Plan(header, range(header.chunk_count)), 0
    busy: list[tuple[float, int, Claim]] = []
    free = [(0.0, n) for n in range(len(rates))]
    while True:
        for at, n in free:
            if (found := plan.next([], is_whole=True, streams=len(rates))) is not None:
                claim, requests = plan.claim(*found), requests + 1
                heapq.heappush(busy, (at + (claim.end - claim.start) / rates[n], n, claim))
        if not busy:
            return at, requests
        at, n, claim = heapq.heappop(busy)
        claim.asks()
        claim.at = claim.end
        plan.end(claim)
        free = [(at, n)]


@pytest.mark.parametrize("streams", [1, 3, 8, 16, 42, 64])
@pytest.mark.parametrize("size_mib", [100, 1000, 2048, 20_000])
@pytest.mark.parametrize("spread", [0, 30])
def test_streams_end_together_though_some_bring_more_than_others(
    streams: int, size_mib: int, spread: int
) -> None:
    slowest = (50 - spread) * MIB
    rates = [slowest + 2 * spread * MIB * (n % 4) / 3 for n in range(streams)]
    took_s, requests = brought_in_s(rates, size_mib * MIB)
    last_s = 16 * MIB / slowest  # of a chunk
    assert took_s <= size_mib * MIB / sum(rates) + last_s
    assert requests <= size_mib / 64 + 8 * streams + 8


def test_one_stream_alone_asks_for_as_much_as_it_may() -> None:
    assert brought_in_s([1.0], 33 * MIB)[1] == 2
    assert brought_in_s([1.0], 256 * MIB)[1] == 4


def test_a_request_is_worth_the_wait_for_its_reply() -> None:
    header = Header("o", "t", "v", "n", 64 * MIB, 16 * MIB, is_resumable=True)
    plan = Plan(header, range(4))
    for part_mib, expected_mib in ((4, 4), (6, 8), (100, 16)):
        found = plan.next([], is_whole=True, streams=64, part_bytes=part_mib * MIB)
        assert found == (0, expected_mib * MIB)
