"""What becomes of a save when every slot is taken: it waits, is skipped, or supersedes another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptd
from ckptd_proto import errors
from fakes.daemon import Daemon
from fakes.rank import Rank
from fakes.tracing import STALLS, tampered
from fakes.waiting import eventually

World = Callable[[int], list[Rank]]
SIZE = 1 << 20


@pytest.fixture
def world(daemon: Daemon, tmp_path: Path) -> Iterator[World]:
    """Makes the ranks of a job, joined."""
    with ExitStack() as stack:

        def make(size: int) -> list[Rank]:
            ranks = [
                stack.enter_context(Rank(daemon.socket, tmp_path, n, size)) for n in range(size)
            ]
            for rank in ranks:
                rank.ask("join")
            return ranks

        yield make


@contextmanager
def busy(daemon: Daemon) -> Iterator[None]:
    """The daemon's disk takes a minute for whatever is to be durable, or until the block ends."""
    with tampered(daemon.pid, f"fsync:{STALLS}"):
        yield


def image(rank: Rank) -> tuple[str, int]:
    return (f"__{rank.rank}_0.distcp", SIZE)


def save(ranks: list[Rank], step: int, when_full: str = "WAIT") -> list[str]:
    """Save *step*, as the save of that number, up to its seal; return its attempt on each rank."""
    opened = open_all(ranks, step, when_full)
    for rank in ranks:
        rank.ask("reserve", images=[image(rank)])
        rank.ask("copy")
    for rank in ranks:
        rank.ask("seal", plan=[image(each) for each in ranks] if rank.rank == 0 else None)
    return [attempt for attempt, _ in opened]


def open_all(ranks: list[Rank], step: int, when_full: str) -> list[Any]:
    return [rank.ask("open", sequence=step, step=step, when_full=when_full) for rank in ranks]


def begun(ranks: list[Rank]) -> list[Rank]:
    """Return the ranks when their first save, which notes who saves, is committed."""
    save(ranks, 0)
    assert ranks[0].ask("watch")["state"] == "COMMITTED"
    return ranks


def committed(directory: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in directory.glob("e/r/step-*"))


def test_a_save_that_would_wait_is_skipped_on_every_rank_or_on_none(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    ranks = begun(world(2))
    with busy(daemon):
        save(ranks, 1)
        save(ranks, 2)
        said, what = ranks[0].ask("open", sequence=3, step=3, when_full="SKIP")
        assert what == "skipped"
        assert "step 3 was skipped: every slot is taken, by step 1, 2" in said
    eventually(lambda: committed(tmp_path) == [0, 1, 2])  # there is room: too late for step 3
    assert ranks[1].ask("open", sequence=3, step=3, when_full="SKIP") == [said, "skipped"]
    save(ranks, 4, when_full="SKIP")
    assert ranks[0].ask("watch")["state"] == "COMMITTED"
    assert committed(tmp_path) == [0, 1, 2, 4]


def test_the_oldest_that_waits_to_be_written_gives_way_and_its_followers_are_told(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    ranks = begun(world(2))
    with busy(daemon):
        save(ranks, 1)
        old = save(ranks, 2)[0]
        save(ranks, 3, when_full="SUPERSEDE")
        save(ranks, 4, when_full="SUPERSEDE")
        outcome = ranks[1].ask("watch", attempt=old)
        assert (outcome["state"], outcome["error"]) == ("ABORTED", "Aborted")
        assert "step 2 is superseded by step 3" in outcome["reason"]
    assert ranks[0].ask("watch")["state"] == "COMMITTED"
    assert committed(tmp_path) == [0, 1, 4]


def test_with_one_slot_a_save_waits_for_what_is_being_written(
    short_path: Path, tmp_path: Path
) -> None:
    with (
        Daemon(short_path, slots_per_rank=1) as daemon,
        Rank(daemon.socket, tmp_path, 0, 1) as rank,
    ):
        rank.ask("join")
        begun([rank])
        with busy(daemon):
            save([rank], 1)
            open_all([rank], 2, "SUPERSEDE")
            with pytest.raises(errors.DeadlineExceeded, match="held by step 1"):
                rank.ask("reserve", images=[image(rank)], timeout_s=0.3)
        eventually(lambda: committed(tmp_path) == [0, 1])


def test_a_skipped_save_says_so_and_is_no_failure(daemon: Daemon, tmp_path: Path) -> None:
    state = {"x": torch.ones(4)}
    place: Any = {"experiment": "e", "run": "r", "socket": daemon.socket}
    with ckptd.Checkpointer(tmp_path, **place, ranks="self", when_full="skip") as checkpoints:
        checkpoints.save(state, step=0).result(timeout=30)
        with busy(daemon):
            saves = [checkpoints.save(state, step=step) for step in (1, 2, 3)]
        assert [save.skipped for save in saves] == [False, False, True]
        with pytest.raises(errors.ResourceExhausted, match="step 3 was skipped"):
            saves[2].result()
        assert saves[1].result(timeout=30).step == 2
        checkpoints.save(state, step=4).result(timeout=30)
    assert committed(tmp_path) == [0, 1, 2, 4]


def test_a_superseded_save_says_so_and_is_no_failure(daemon: Daemon, tmp_path: Path) -> None:
    state = {"x": torch.ones(4)}
    place: Any = {"experiment": "e", "run": "r", "socket": daemon.socket}
    with ckptd.Checkpointer(tmp_path, **place, ranks="self", when_full="supersede") as checkpoints:
        checkpoints.save(state, step=0).result(timeout=30)
        with busy(daemon):
            saves = [checkpoints.save(state, step=step) for step in (1, 2, 3)]
            eventually(saves[1].done)
        assert saves[1].superseded_by == 3
        saves[2].result(timeout=30)
        checkpoints.save(state, step=4)  # does not raise that
        with pytest.raises(errors.Aborted, match="superseded by step 3"):
            saves[1].result()
    assert committed(tmp_path) == [0, 1, 3, 4]


def test_a_policy_that_there_is_not_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    place: Any = {"experiment": "e", "run": "r", "when_full": "drop"}
    with pytest.raises(errors.InvalidArgument, match='pass "wait", "skip" or "supersede"'):
        ckptd.Checkpointer(tmp_path, socket=daemon.socket, **place)
