"""Staging when something is in the way: other jobs, ranks that stand still, a lost mount."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes.daemon import Daemon
from fakes.rank import Rank
from fakes.require_real import need_root
from fakes.tracing import STALLS, tampered
from fakes.waiting import eventually

MIB = 1 << 20
World = Callable[..., list[Rank]]


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
    daemon: Daemon, mounted: Path
) -> None:
    with Rank(daemon.socket, mounted, 0, 1) as rank:
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
