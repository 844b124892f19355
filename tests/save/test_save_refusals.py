"""What cannot be saved is refused in words, and leaves nothing behind."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ckptd_proto import errors
from fakes.daemon import Daemon
from fakes.rank import Rank
from fakes.require_real import need_root
from fakes.waiting import eventually

MIB = 1 << 20


@pytest.fixture
def daemon(short_path: Path) -> Iterator[Daemon]:
    """One that tells at once of what a disk fails with."""
    with Daemon(short_path, persist_retry_s=0) as running:
        yield running


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 16 MiB."""
    need_root()
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", directory], check=True)
    yield directory
    subprocess.run(["umount", "-l", directory], check=True)


@pytest.fixture
def ranks(daemon: Daemon, tmp_path: Path) -> Iterator[list[Rank]]:
    with ExitStack() as stack:
        made = [stack.enter_context(Rank(daemon.socket, tmp_path, rank, 3)) for rank in range(3)]
        for rank in made:
            rank.ask("join")
        yield made


def save(rank: Rank, size: int) -> dict[str, str]:
    rank.ask("open", sequence=0, step=1)
    rank.ask("reserve", images=[("a", size)])
    rank.ask("copy")
    rank.ask("seal", plan=[("a", size)])
    outcome = rank.ask("watch")
    assert isinstance(outcome, dict)
    return outcome


def test_a_full_disk_aborts_with_the_numbers_and_leaves_nothing(
    daemon: Daemon, small: Path
) -> None:
    with Rank(daemon.socket, small, 0, 1) as rank:
        rank.ask("join")
        outcome = save(rank, 20 * MIB)
        assert (outcome["state"], outcome["error"]) == ("ABORTED", "ResourceExhausted")
        assert f"takes {20 * MIB} bytes" in outcome["reason"]
        assert {path.name for path in small.rglob("*") if path.is_file()} == {".fence.json"}
        rank.ask("open", sequence=1, step=1)
        rank.ask("reserve", images=[("a", MIB)])
        rank.ask("seal", plan=[("a", MIB)])
        assert rank.ask("watch")["state"] == "COMMITTED"


def test_a_read_only_root_is_refused(daemon: Daemon, small: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    with (
        Rank(daemon.socket, small, 0, 1) as rank,
        pytest.raises(errors.PermissionDenied, match="make it writable"),
    ):
        rank.ask("join")


def test_a_root_that_turns_read_only_aborts(daemon: Daemon, small: Path) -> None:
    with Rank(daemon.socket, small, 0, 1) as rank:
        rank.ask("join")
        rank.ask("open", sequence=0, step=1)
        rank.ask("reserve", images=[("a", MIB)])
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        rank.ask("seal", plan=[("a", MIB)])
        outcome = rank.ask("watch")
        assert (outcome["state"], outcome["error"]) == ("ABORTED", "PermissionDenied")


def test_an_arena_too_small_is_refused_before_a_byte_is_copied(
    short_path: Path, small: Path, tmp_path: Path
) -> None:
    with (
        Daemon(short_path, arena_dir=small) as daemon,
        Rank(daemon.socket, tmp_path, 0, 1) as rank,
    ):
        rank.ask("join")
        rank.ask("open", sequence=0, step=1)
        with pytest.raises(errors.ResourceExhausted, match="may hold 8388608") as refused:
            rank.ask("reserve", images=[("a", 10 * MIB)])
        assert (refused.value.free_bytes, refused.value.need_bytes) == (8 * MIB, 11 * MIB)
        with pytest.raises(errors.ResourceExhausted):
            rank.ask("prepare", size=10 * MIB)
        assert not list(small.rglob("*.slot"))


def test_an_arena_whose_filesystem_is_full_is_refused_not_faulted(
    short_path: Path, small: Path, tmp_path: Path
) -> None:
    with (
        Daemon(short_path, arena_dir=small, arena_bytes=64 * MIB) as daemon,
        Rank(daemon.socket, tmp_path, 0, 1) as rank,
    ):
        rank.ask("join")
        rank.ask("open", sequence=0, step=1)
        with pytest.raises(errors.ResourceExhausted, match="or the memory has"):
            rank.ask("reserve", images=[("a", 20 * MIB)])
        assert not list(small.rglob("*.slot"))


def test_ranks_that_together_can_never_fit_are_refused_at_once(
    short_path: Path, tmp_path: Path
) -> None:
    with (
        Daemon(short_path, arena_bytes=8 * MIB) as daemon,
        Rank(daemon.socket, tmp_path, 0, 2) as one,
        Rank(daemon.socket, tmp_path, 1, 2) as other,
    ):
        for rank in (one, other):
            rank.ask("join")
            rank.ask("open", sequence=0, step=1)
        one.ask("reserve", images=[("a", 5 * MIB)])
        with pytest.raises(errors.ResourceExhausted, match="of the same save"):
            other.ask("reserve", images=[("b", 5 * MIB)])


def test_a_slot_that_does_not_come_free_in_time_says_who_holds_it(
    short_path: Path, tmp_path: Path
) -> None:
    with (
        Daemon(short_path, arena_bytes=8 * MIB) as daemon,
        Rank(daemon.socket, tmp_path, 0, 1) as one,
        Rank(daemon.socket, tmp_path, 0, 1, run="other") as other,
    ):
        for rank in (one, other):
            rank.ask("join")
            rank.ask("open", sequence=0, step=1)
        one.ask("reserve", images=[("a", 5 * MIB)])
        with pytest.raises(errors.DeadlineExceeded, match=r"held by step 1 of .*/e/r"):
            other.ask("reserve", images=[("b", 5 * MIB)], timeout_s=0.2)
        other.begin("reserve", images=[("b", 5 * MIB)])
        one.kill()
        assert other.answer()


def test_names_that_leave_the_root_are_refused(daemon: Daemon, tmp_path: Path) -> None:
    for name in ("..", "a/b", "", "x" * 129, "a\n"):
        with (
            Rank(daemon.socket, tmp_path, 0, 1, run=name) as rank,
            pytest.raises(errors.InvalidArgument, match="run name"),
        ):
            rank.ask("join")
    assert not [path for path in tmp_path.iterdir() if path.name != "small"]


def test_a_root_seen_otherwise_by_the_client_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    with (
        Rank(daemon.socket, tmp_path, 0, 1) as rank,
        pytest.raises(errors.FailedPrecondition, match="both must see the same directory"),
    ):
        rank.ask("join", inode=1)


def test_gathered_payloads_reach_every_rank_in_order(ranks: list[Rank]) -> None:
    for rank in ranks:
        rank.begin("gather", round="1", data=f"{rank.rank}", times=rank.rank * 600_000)
    expected = [[0, ""], [600_000, "1" * 20], [1_200_000, "2" * 20]]
    assert [rank.answer() for rank in ranks] == [expected] * 3
    assert ranks[1].ask("gather", round="1", data="1", times=600_000) == expected
    for rank in ranks:
        rank.begin("gather", round="2", data="x")
    assert [rank.answer() for rank in ranks] == [[[1, "x"]] * 3] * 3


def test_a_rank_that_dies_ends_the_gather_at_once(ranks: list[Rank]) -> None:
    ranks[0].begin("gather", round="1", data="a", timeout_s=300)
    ranks[2].begin("gather", round="1", data="c", timeout_s=300)
    ranks[1].kill()
    for rank in (ranks[0], ranks[2]):
        with pytest.raises(errors.Aborted, match=rf"rank 1 \(pid {ranks[1].pid}\) died"):
            rank.answer()
    with pytest.raises(errors.Aborted, match="rank 1"):
        ranks[0].ask("gather", round="2", data="a", timeout_s=300)
    eventually(lambda: ranks[0].ask("roll") == [[1, ranks[1].pid]])


def test_a_gather_names_the_ranks_that_do_not_come(ranks: list[Rank]) -> None:
    with pytest.raises(errors.DeadlineExceeded, match=r"ranks 0, 2 of 3 did not come"):
        ranks[1].ask("gather", round="1", data="b", timeout_s=0.2)
