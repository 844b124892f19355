"""Staging when something is in the way: other jobs, ranks that stand still, a lost mount."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ckptd.link.connection import Connection, Stubs
from ckptd.saving.exchange import choose
from ckptd.saving.membership import Membership
from ckptd_proto import errors
from ckptd_proto.v1 import node_pb2, saves_pb2
from fakes.daemon import Daemon, arena_of
from fakes.rank import Rank
from fakes.require_real import need_root
from fakes.tracing import STALLS, tampered
from fakes.waiting import eventually

MIB = 1 << 20
World = Callable[..., tuple[Rank, Rank]]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own."""
    need_root()
    directory = tmp_path / "mounted"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True)
    yield directory
    subprocess.run(["umount", "-l", directory], check=False)  # a test may have done it


def stage(rank: Rank, sequence: int, step: int, size: int = MIB) -> None:
    rank.ask("open", sequence=sequence, step=step)
    rank.ask("reserve", images=[("a", size)])


def test_a_save_never_lands_below_a_mount_point_whose_mount_is_lost(
    short_path: Path, mounted: Path
) -> None:
    with (
        Daemon(short_path, persist_retry_s=1) as daemon,
        Rank(daemon.socket, mounted, 0, 1) as rank,
    ):
        rank.ask("join")
        stage(rank, 0, step=1)
        subprocess.run(["umount", "-l", mounted], check=True)
        rank.ask("seal", plan=[("a", MIB)])
        outcome = rank.ask("watch")
        assert (outcome["state"], outcome["error"]) == ("ABORTED", "FailedPrecondition")
        assert "mount it again" in outcome["reason"]
        assert not list(mounted.iterdir())


def test_a_restarted_daemon_commits_nothing_below_a_lost_mount(
    daemon: Daemon, mounted: Path
) -> None:
    with Rank(daemon.socket, mounted, 0, 1) as rank:
        rank.ask("join")
        stage(rank, 0, step=1)
        with tampered(daemon.pid, f"fsync:{STALLS}"):
            rank.ask("seal", plan=[("a", MIB)])
            os.kill(daemon.pid, signal.SIGKILL)
        daemon.kill()
    subprocess.run(["umount", "-l", mounted], check=True)
    daemon.start()
    eventually(lambda: "mount it again" in daemon.log_text())
    assert not list(mounted.iterdir())


def test_a_restarted_daemon_does_not_make_a_lost_root_anew(daemon: Daemon, tmp_path: Path) -> None:
    connection, root = Connection.open(daemon.socket), tmp_path / "made by the daemon"
    member = Membership.join(connection, choose(alone=True, timeout_s=10), root, "e", "r")
    daemon.kill()
    root.rmdir()
    daemon.start()
    request = saves_pb2.PrepareRequest(job=member.job, rank=0, size_bytes=1)
    with pytest.raises(errors.FailedPrecondition, match="nothing for the daemon"):
        member.call(lambda stubs: stubs.saves.Prepare(request))
    assert not root.exists()


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[World]:
    """Makes the ranks of a job of two, joined."""
    with ExitStack() as stack:

        def make(daemon: Daemon, **place: str) -> tuple[Rank, Rank]:
            one, two = (
                stack.enter_context(Rank(daemon.socket, tmp_path, rank, 2, **place))
                for rank in range(2)
            )
            one.ask("join")
            two.ask("join")
            return one, two

        yield make


def test_jobs_that_do_not_fit_side_by_side_stage_one_after_another(
    short_path: Path, ranks: World
) -> None:
    with Daemon(short_path, arena_bytes=5 * MIB) as daemon:  # for two slots of these
        (a0, a1), (b0, b1) = ranks(daemon, run="a"), ranks(daemon, run="b")
        open_both(a0, b0, images_bytes=2 * MIB)
        reserve(a0)
        b0.begin("reserve", images=[("0", MIB)])
        a1.ask("open", sequence=0, step=1)
        reserve(a1)
        seal(a0, a1)
        assert a0.ask("watch")["state"] == "COMMITTED"
        b0.answer()
        b1.ask("open", sequence=0, step=1)
        reserve(b1)
        seal(b0, b1)
        assert b0.ask("watch")["state"] == "COMMITTED"


def test_jobs_for_which_there_is_room_do_not_wait_for_each_other(
    daemon: Daemon, ranks: World
) -> None:
    (a0, _), (b0, b1) = ranks(daemon, run="a"), ranks(daemon, run="b")
    open_both(a0, b0, images_bytes=2 * MIB)
    b1.ask("open", sequence=0, step=1)
    reserve(b0, b1)
    seal(b0, b1)
    assert b0.ask("watch")["state"] == "COMMITTED"


def test_who_waits_for_a_job_of_unknown_size_is_told_which(daemon: Daemon, ranks: World) -> None:
    (a0, _), (b0, _) = ranks(daemon, run="a"), ranks(daemon, run="b")
    open_both(a0, b0)
    with pytest.raises(errors.DeadlineExceeded, match=r"e/a was begun .* its rank 0, 1 has"):
        b0.ask("reserve", images=[("0", MIB)], timeout_s=0.1)


def test_a_rank_that_stands_still_ends_the_save_by_name(daemon: Daemon, ranks: World) -> None:
    one, two = ranks(daemon)
    open_both(one, two)
    for rank in (one, two):
        rank.ask("reserve", images=[(str(rank.rank), MIB)], timeout_s=5)
    one.ask("seal", plan=[("0", MIB), ("1", MIB)])
    outcome = one.ask("watch")
    assert (outcome["state"], outcome["error"]) == ("ABORTED", "Aborted")
    assert "rank 1 did not stage step 1 within 5 s" in outcome["reason"]
    with pytest.raises(errors.Aborted, match="rank 1 did not stage"):
        two.ask("seal")


def test_a_slot_stays_its_ranks_until_that_has_heard_of_the_end(
    short_path: Path, ranks: World
) -> None:
    with Daemon(short_path, arena_bytes=5 * MIB) as daemon:  # for two slots of these
        (a0, a1), (b0, b1) = ranks(daemon, run="a"), ranks(daemon, run="b")
        open_both(a0, a1)
        reserve(a0, a1)
        a1.kill()
        assert a0.ask("watch")["state"] == "ABORTED"
        open_both(b0, b1)
        reserve(b0)
        with pytest.raises(errors.DeadlineExceeded, match=r"held by step 1 of .*/e/a"):
            b1.ask("reserve", images=[("1", MIB)], timeout_s=0.2)
        a0.ask("abort", reason="heard")
        reserve(b1)


def test_a_fenced_ranks_slot_stays_until_the_rank_calls_or_ends(
    daemon: Daemon, ranks: World
) -> None:
    old, (new, _) = ranks(daemon), ranks(daemon, incarnation="later")
    open_both(*old)
    reserve(*old)
    new.ask("open", sequence=0, step=1)
    assert arena(daemon).slots == 2
    with pytest.raises(errors.Aborted, match="later"):
        old[0].ask("seal")
    eventually(lambda: arena(daemon).slots == 1)
    old[1].kill()
    eventually(lambda: arena(daemon).slots == 0)


def test_the_next_life_finds_what_the_last_has_staged_even_if_some_of_it_lives(
    daemon: Daemon, ranks: World
) -> None:
    (old, straggler), (new, _) = ranks(daemon), ranks(daemon, incarnation="next")
    open_both(old, straggler)
    reserve(old, straggler)
    with tampered(daemon.pid, "fsync:delay_enter=1000000"):
        seal(old, straggler)
        old.kill()
        assert straggler.ask("steps") == []  # its own saves it knows how to wait for
        assert new.ask("steps") == [1]


def open_both(*ranks: Rank, **options: object) -> None:
    for rank in ranks:
        rank.ask("open", sequence=0, step=1, **options)


def reserve(*ranks: Rank) -> None:
    for rank in ranks:
        rank.ask("reserve", images=[(str(rank.rank), MIB)])


def seal(*ranks: Rank) -> None:
    for rank in ranks:
        rank.ask("seal", plan=[("0", MIB), ("1", MIB)] if rank.rank == 0 else None)


def arena(daemon: Daemon) -> node_pb2.ArenaStatus:
    def ask(stubs: Stubs) -> node_pb2.ArenaStatus:
        return stubs.node.Status(node_pb2.StatusRequest()).arena

    return Connection.open(daemon.socket).call(ask)


@pytest.mark.parametrize("victims", ["daemon", "client", "both"])
def test_segments_that_nobody_can_finish_are_reclaimed(
    daemon: Daemon, tmp_path: Path, victims: str
) -> None:
    with Rank(daemon.socket, tmp_path, 0, 1) as rank:
        rank.ask("join")
        rank.ask("prepare", size=MIB)
        stage(rank, 0, step=1)
        rank.ask("copy")
        segments = arena_of(daemon.state_dir)
        assert len(list(segments.glob("*.slot"))) == 2
        if victims != "client":  # first: of a rank that is dead it would tidy up
            daemon.kill()
        if victims != "daemon":
            rank.kill()
        if victims != "client":
            assert list(segments.glob("*.slot"))  # whoever was killed cannot have tidied up
            daemon.start()
        if victims == "daemon":  # as far as it knows the rank is writing even now
            assert len(list(segments.glob("*.slot"))) == 1
            with pytest.raises(errors.Aborted, match="restarted"):
                rank.ask("seal", plan=[("a", MIB)])
        eventually(lambda: not list(segments.glob("*.slot")))
