"""A job that comes back on other nodes finds what the old ones had staged."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd_proto import errors
from fakes.cluster import Cluster, cluster
from fakes.daemon import Daemon
from fakes.rank import Rank
from fakes.tracing import STALLS, tampered
from fakes.waiting import eventually

pytestmark = pytest.mark.timeout(240)

PATIENT_S = 20.0
HASTY_S = 4.0  # longer than nodes pause between two looks


@pytest.fixture
def old(short_path: Path, tmp_path: Path) -> Iterator[Cluster]:
    with cluster(short_path, tmp_path, 2, takeover_s=1) as nodes:
        yield nodes


def new_node(short_path: Path, still_s: float) -> Daemon:
    return Daemon(short_path / "new", takeover_s=still_s / 2)


def later(daemon: Daemon, root: Path) -> Rank:
    return Rank(daemon.socket, root, 0, 1, incarnation="later")


def has_begun(old: Cluster) -> bool:
    return bool(list(old.run.glob(".attempts/*/.receipts")))


@pytest.mark.parametrize("what", ["steps", "prepare"])
def test_what_the_old_nodes_have_staged_is_waited_for(
    old: Cluster, short_path: Path, tmp_path: Path, what: str
) -> None:
    with new_node(short_path, PATIENT_S) as daemon, later(daemon, tmp_path) as rank:
        rank.ask("join")
        old.stage(0)
        with tampered(old.daemons[1].pid, f"fsync:{STALLS}"):
            old.seal()
            for each in old.ranks:
                each.kill()
            rank.begin(what, **({"size": 1 << 20} if what == "prepare" else {}))
            time.sleep(2)
            assert old.steps() == [], "it is on its way still"
        rank.answer()
        assert rank.ask("steps") == [7]
        assert old.is_whole()
        with pytest.raises(errors.AlreadyExists, match="on_existing='replace'"):
            rank.ask("open", sequence=0, step=7)
        rank.ask("open", sequence=1, step=8)
        assert rank.ask("steps") == [7]


def test_what_still_moves_is_waited_for_however_long_it_takes(
    old: Cluster, short_path: Path, tmp_path: Path
) -> None:
    with new_node(short_path, HASTY_S) as daemon, later(daemon, tmp_path) as rank:
        rank.ask("join")
        old.stage(0)
        with tampered(old.daemons[1].pid, f"fsync:{STALLS}"):
            old.seal()
            eventually(lambda: has_begun(old))
            rank.begin("steps")
            (attempt,) = (old.run / ".attempts").glob("0-*")
            for size in range(8):  # as a large image grows
                (attempt / ".growing").write_bytes(bytes(size))
                time.sleep(HASTY_S / 3)
            (attempt / ".growing").unlink()
        assert rank.answer() == [7]


def test_what_lost_its_nodes_is_waited_for_once_and_not_for_long(
    old: Cluster, short_path: Path, tmp_path: Path
) -> None:
    with new_node(short_path, HASTY_S) as daemon, later(daemon, tmp_path) as rank:
        rank.ask("join")
        old.stage(0)
        for one in old.daemons:
            os.kill(one.pid, signal.SIGSTOP)
        assert has_begun(old)
        began = time.monotonic()
        assert rank.ask("steps") == []
        assert time.monotonic() - began >= HASTY_S
        began = time.monotonic()
        assert rank.ask("steps") == []
        assert time.monotonic() - began < HASTY_S
        for one in old.daemons:
            os.kill(one.pid, signal.SIGCONT)


def test_who_only_reads_does_not_wait_for_a_job_on_other_nodes(
    old: Cluster, short_path: Path, tmp_path: Path
) -> None:
    with new_node(short_path, PATIENT_S) as daemon, later(daemon, tmp_path) as rank:
        rank.ask("join", read_only=True)
        old.stage(0)
        assert has_begun(old)
        began = time.monotonic()
        assert rank.ask("steps") == []
        assert time.monotonic() - began < PATIENT_S / 2


def test_a_life_that_saves_before_it_has_looked_ends_what_the_old_nodes_had_staged(
    old: Cluster, short_path: Path, tmp_path: Path
) -> None:
    with new_node(short_path, PATIENT_S) as daemon, later(daemon, tmp_path) as rank:
        rank.ask("join")
        old.stage(0)
        with tampered(old.daemons[1].pid, f"fsync:{STALLS}"):
            old.seal()
            rank.ask("open", sequence=0, step=9)
        assert old.outcomes() == ["ABORTED"] * 2
        assert old.steps() == []
