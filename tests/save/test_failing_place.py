"""A place that fails for a while: what all ranks have staged waits for it, and is not thrown away."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fakes.cluster import Cluster, cluster
from fakes.daemon import Daemon
from fakes.rank import Rank
from fakes.require_real import need_root
from fakes.tracing import STALLS, tampered
from fakes.waiting import eventually

pytestmark = pytest.mark.timeout(240)

Nodes = Callable[..., Cluster]

# What fails, on what, with what; on how many nodes the ranks are.
PASSING = [
    ("mkdir", "{attempt}", "EIO", 1),
    ("fallocate", "{attempt}/__0_0.distcp", "ENOSPC", 1),
    ("fsync", "{attempt}/__0_0.distcp", "EIO", 1),
    ("pwrite64", "{attempt}/__0_0.distcp", "ENOTCONN", 1),
    ("fsync", "{attempt}", "ESTALE", 1),
    ("rename", "{attempt}", "EIO", 1),
    ("fsync", "{run}", "EIO", 1),
    ("fsync", "{attempt}/.{name}/__1_0.distcp", "EIO", 2),
    ("mkdir", "{attempt}/.{name}", "ESTALE", 2),
]


@pytest.fixture
def nodes(short_path: Path, tmp_path: Path) -> Iterator[Nodes]:
    """Makes nodes that save below `root`, of which there is a step."""
    root = tmp_path / "root"
    root.mkdir()
    open_ones = []

    def make(size: int = 1, **settings: object) -> Cluster:
        one = cluster(short_path, root, size, **settings)
        open_ones.append(one)
        its = one.__enter__()
        its.save(0, 0)
        return its

    yield make
    for one in open_ones:
        one.__exit__(None, None, None)


def stage(its: Cluster, step: int) -> str:
    return its.stage(step, step, salt=f"{step}-")


def notes(daemon: Daemon) -> str:
    """What the daemon says of the saves that it has in hand."""
    return "; ".join(each.note for each in daemon.client().status().attempts)


def all_idle(daemon: Daemon) -> bool:
    arena = daemon.client().status().arena
    return arena.slots == arena.idle_slots


def wait_waiting(its: Cluster, step: int, daemon: Daemon | None = None) -> str:
    """Wait until the last node, or another, says that the step waits; return what it says."""
    text, told = f"step {step} is staged and waits for its place", daemon or its.daemons[-1]
    return eventually(lambda: found if text in (found := notes(told)) else "")


@pytest.mark.parametrize(("call", "where", "code", "size"), PASSING)
def test_what_is_staged_is_committed_when_its_place_works_again(
    nodes: Nodes, call: str, where: str, code: str, size: int
) -> None:
    its = nodes(size)
    attempt, last = stage(its, 1), its.daemons[-1]
    names = {"attempt": its.run / ".attempts" / attempt, "run": its.run, "name": its.names[-1]}
    with tampered(last.pid, f"{call}:error={code}", on=[Path(where.format(**names))]):
        its.seal()
        its.watch()
        wait_waiting(its, 1)
        eventually(lambda: its.steps() == [0])  # for a moment, each try may have made it
    assert [told["state"] for told in its.told()] == ["COMMITTED"] * size
    assert its.is_whole(1, "1-")
    its.save(2, 2)
    eventually(lambda: its.left() == [])


@pytest.mark.parametrize("code", ["EACCES", "EROFS"])
def test_what_cannot_pass_fails_at_once(nodes: Nodes, code: str) -> None:
    its = nodes()
    directory = its.run / ".attempts" / stage(its, 1)
    with tampered(its.daemons[0].pid, f"mkdir:error={code}", on=[directory]):
        its.seal()
        its.watch()
        (told,) = its.told()
    assert (told["state"], told["error"]) == ("ABORTED", "PermissionDenied")


def test_a_disk_that_is_full_is_waited_for_and_its_trainer_told(
    short_path: Path, tmp_path: Path
) -> None:
    need_root()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", tmp_path], check=True)
    try:
        with cluster(short_path, tmp_path, 1) as its:
            filler = tmp_path / "filler"
            filler.write_bytes(bytes(5 << 20))
            stage(its, 1)
            its.seal()
            its.watch()
            assert "free some space" in wait_waiting(its, 1)
            filler.unlink()
            assert [told["state"] for told in its.told()] == ["COMMITTED"]
            assert its.is_whole(1, "1-")
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_the_oldest_that_waits_for_its_place_gives_its_memory_to_a_newer_save(
    nodes: Nodes,
) -> None:
    its = nodes(slots_per_rank=1)
    (rank,) = its.ranks
    with tampered(its.daemons[0].pid, "mkdir:error=EIO"):
        old = stage(its, 1)
        its.seal()
        wait_waiting(its, 1)
        stage(its, 2)
        told = rank.ask("watch", attempt=old)
        assert (told["state"], told["error"]) == ("ABORTED", "Unavailable")
        assert "disk failed" in told["reason"]
        assert f"as step 2 of {its.run} needs the memory" in told["reason"]
        its.seal()
        wait_waiting(its, 2)
    assert its.outcomes() == ["COMMITTED"]
    assert its.is_whole(2, "2-")
    assert its.steps() == [0, 2]


@pytest.mark.parametrize("when_full", ["SKIP", "SUPERSEDE"])
def test_a_place_that_fails_has_no_newer_save_skipped_and_no_failure_hidden(
    nodes: Nodes, when_full: str
) -> None:
    its = nodes(slots_per_rank=1)
    (rank,) = its.ranks
    with tampered(its.daemons[0].pid, "mkdir:error=EIO"):
        old = stage(its, 1)
        its.seal()
        wait_waiting(its, 1)
        its.stage(2, 2, salt="2-", when_full=when_full)
        told = rank.ask("watch", attempt=old)
        assert (told["error"], told["superseded_by"]) == ("Unavailable", 0)
        its.seal()
    assert its.outcomes() == ["COMMITTED"]


def test_a_failure_that_lasts_is_told_when_the_time_is_over(nodes: Nodes) -> None:
    its = nodes(persist_retry_s=1)
    stage(its, 1)
    with tampered(its.daemons[0].pid, "mkdir:error=EIO"):
        its.seal()
        its.watch()
        (told,) = its.told()
    assert (told["state"], told["error"]) == ("ABORTED", "Unavailable")
    assert "as long as `persist_retry_s` (1) allows" in told["reason"]
    assert "tried 1 times" not in told["reason"]
    its.save(2, 2)


def test_a_mount_that_is_lost_while_a_step_is_written_is_waited_for(nodes: Nodes) -> None:
    its = nodes()
    directory, elsewhere = its.run / ".attempts" / stage(its, 1), its.root.with_name("elsewhere")
    image = directory / "__0_0.distcp"
    with tampered(its.daemons[0].pid, f"fsync:{STALLS}", on=[image]):
        its.seal()
        its.watch()
        eventually(image.exists)
        its.root.rename(elsewhere)
    assert "mount it again" in wait_waiting(its, 1)
    elsewhere.rename(its.root)
    assert [told["state"] for told in its.told()] == ["COMMITTED"]
    assert its.is_whole(1, "1-")


@contextmanager
def staged_and_dead(its: Cluster, step: int) -> Iterator[None]:
    """Inside, a step is staged and all are dead, and the place is not mounted."""
    elsewhere = its.root.with_name("elsewhere")
    stage(its, step)
    with ExitStack() as failing:
        for daemon in its.daemons:
            failing.enter_context(tampered(daemon.pid, "mkdir:error=EIO"))
        its.seal()
        for daemon in its.daemons:
            wait_waiting(its, step, daemon)
        its.end()
        for daemon in its.daemons:
            os.kill(daemon.pid, signal.SIGKILL)  # to be waited for when strace has gone
    for daemon in its.daemons:
        daemon.wait_killed()
    its.root.rename(elsewhere)
    yield
    if its.root.exists():
        its.root.rmdir()
    elsewhere.rename(its.root)


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("size", [1, 2])
def test_what_is_staged_waits_for_a_place_that_is_mounted_after_the_daemon_started(
    nodes: Nodes, size: int, is_there: bool
) -> None:
    its = nodes(size)
    with staged_and_dead(its, 1):
        if is_there:  # where it is to be mounted
            its.root.mkdir()
        for daemon in its.daemons:
            daemon.start()
        for daemon in its.daemons:
            assert "mount it again" in wait_waiting(its, 1, daemon)
        assert all(not list(its.root.iterdir()) for _ in range(is_there))
    eventually(lambda: its.steps() == [0, 1])
    assert its.is_whole(1, "1-")
    its.revive()
    its.save(2, 2)


def test_what_waits_too_long_for_dead_trainers_is_lost_aloud_and_gives_its_memory_back(
    nodes: Nodes,
) -> None:
    its = nodes(persist_retry_s=1)
    (daemon,) = its.daemons
    with staged_and_dead(its, 1):
        daemon.start()
        eventually(lambda: daemon.client().status().attempts == ())
        eventually(lambda: all_idle(daemon))
        lost = [line for line in daemon.log_text().splitlines() if "was whole in memory" in line]
        assert f"step 1 of {its.run} is aborted" in lost[-1]
        assert "mount it again" in lost[-1]
        assert "ERROR" in lost[-1].upper()


def test_what_waits_for_its_place_gives_its_memory_to_a_job_that_needs_it(
    nodes: Nodes, tmp_path: Path
) -> None:
    its = nodes(arena_bytes=6 << 20)
    (daemon,) = its.daemons
    with staged_and_dead(its, 1):
        daemon.start()
        wait_waiting(its, 1)
        (tmp_path / "other").mkdir()
        with Rank(daemon.socket, tmp_path / "other", 0, 1) as rank:
            rank.ask("join")
            rank.ask("open", sequence=0, step=1)
            rank.ask("reserve", images=[("a", 4 << 20)])
        assert "as step 1 of" in daemon.log_text()
