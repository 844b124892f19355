"""Ranks without a process group talk through their daemon, and its death loses nobody's word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import enumerate as threads_of_this_process
from typing import TypeVar

import pytest

from ckptd.link.connection import Connection, Stubs
from ckptd.saving.exchange import ThroughDaemon
from ckptd_proto.v1 import saves_pb2
from fakes.daemon import Daemon
from fakes.rank import Rank
from fakes.waiting import eventually

T = TypeVar("T")


class Member:
    """This process as rank 0 of two."""

    def __init__(self, daemon: Daemon, root: Path) -> None:
        self.connection = Connection.open(daemon.socket)
        self.request = saves_pb2.JoinRequest(
            root=str(root), experiment="e", run="r", incarnation="i", rank=0, world_size=2
        )
        self.job = self.call(self.join)
        self.connection.on_connect(self.join)

    def call(self, fn: Callable[[Stubs], T]) -> T:
        return self.connection.call(fn)

    def join(self, stubs: Stubs) -> str:
        return str(stubs.saves.Join(self.request).job)


@pytest.fixture
def ours(daemon: Daemon, tmp_path: Path) -> Iterator[ThroughDaemon]:
    exchange = ThroughDaemon(0, 2, 30.0)
    exchange.meet_in(Member(daemon, tmp_path), 0)
    yield exchange
    exchange.close()


@pytest.fixture
def theirs(daemon: Daemon, tmp_path: Path) -> Iterator[Rank]:
    with Rank(daemon.socket, tmp_path, 1, 2) as rank:
        rank.ask("join")
        yield rank


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def exchanged(
    threads: ThreadPoolExecutor, ours: ThroughDaemon, theirs: Rank, number: int
) -> list[bytes]:
    mine: Future[list[bytes]] = threads.submit(ours.all_gather, f"ours {number}".encode())
    assert asked(theirs, number) == [[6, f"ours {number}"], [8, f"theirs {number}"]]
    return mine.result(30)


def asked(theirs: Rank, number: int) -> object:
    return theirs.ask(
        "gather", round=f"exchange 0.0.{number}", data=f"theirs {number}", timeout_s=20
    )


def test_a_rank_that_had_no_answer_when_the_daemon_died_gets_it_from_the_next(
    daemon: Daemon, ours: ThroughDaemon, theirs: Rank, threads: ThreadPoolExecutor
) -> None:
    assert exchanged(threads, ours, theirs, 1) == [b"ours 1", b"theirs 1"]
    daemon.kill()
    daemon.start()
    # as though its answer had been on the way; the other rank calls nothing meanwhile
    assert asked(theirs, 1) == [[6, "ours 1"], [8, "theirs 1"]]
    assert exchanged(threads, ours, theirs, 2) == [b"ours 2", b"theirs 2"]


def test_a_rank_that_is_a_round_ahead_still_answers_for_the_last(
    daemon: Daemon, ours: ThroughDaemon, theirs: Rank, threads: ThreadPoolExecutor
) -> None:
    exchanged(threads, ours, theirs, 1)
    ahead = threads.submit(ours.all_gather, b"ours 2")
    daemon.kill()
    daemon.start()
    assert asked(theirs, 1) == [[6, "ours 1"], [8, "theirs 1"]]
    assert asked(theirs, 2) == [[6, "ours 2"], [8, "theirs 2"]]
    assert ahead.result(30) == [b"ours 2", b"theirs 2"]


def test_a_rank_answers_for_no_more_than_the_last_round(
    daemon: Daemon, ours: ThroughDaemon, theirs: Rank, threads: ThreadPoolExecutor
) -> None:
    for number in range(1, 6):
        exchanged(threads, ours, theirs, number)
        asked(theirs, number)  # again: the fake does not stand by
    eventually(lambda: standing_by() == 1)


def test_ranks_that_stand_by_do_not_hold_up_a_stop(
    daemon: Daemon, ours: ThroughDaemon, theirs: Rank, threads: ThreadPoolExecutor
) -> None:
    exchanged(threads, ours, theirs, 1)
    daemon.kill()
    daemon.start()
    asked(theirs, 1)  # who stands by has come there
    daemon.stop()
    eventually(lambda: standing_by() == 0)


def standing_by() -> int:
    return sum(thread.name.startswith("ckptd-exchange") for thread in threads_of_this_process())
