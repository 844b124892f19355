"""One node of several is about to go away: its newest step goes first, and nobody's is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import ranks
from fakes.cluster import SIZE, Cluster
from fakes.daemon import Daemon
from fakes.tracing import STALLS, tampered
from fakes.waiting import eventually

pytestmark = pytest.mark.timeout(240)
PROGRAM = Path(__file__).parent / "programs" / "warned.py"
HOUR = "3600"


@pytest.fixture
def notice(short_path: Path) -> Path:
    """Where the second node is told."""
    return short_path / "notice"


@pytest.fixture
def daemons(short_path: Path, notice: Path) -> Iterator[list[Daemon]]:
    hasty = {"preemption_poll_s": 0.05, "slots_per_rank": 3}
    with (
        Daemon(short_path / "0", **hasty) as staying,
        Daemon(short_path / "1", preemption_notice=notice, **hasty) as going,
    ):
        yield [staying, going]


@pytest.fixture
def nodes(daemons: list[Daemon], tmp_path: Path) -> Iterator[Cluster]:
    both = Cluster(daemons, tmp_path, each=1, at=tmp_path, incarnation="i")
    yield both
    both.end()


def test_the_newest_step_of_a_node_that_goes_away_is_first_and_the_others_are_saved_too(
    nodes: Cluster, notice: Path
) -> None:
    nodes.save(0, 0)
    nodes.ranks[1].ask("prepare", size=2 * SIZE)
    with tampered(nodes.daemons[1].pid, f"fallocate:{STALLS}"):
        attempts = []
        for number in (1, 2, 3):
            attempts.append(nodes.stage(number, number, salt=str(number)))
            nodes.seal()
            eventually(lambda: list(nodes.run.glob(".attempts/1-*/.*/__1_0.distcp")))
        notice.write_text(HOUR)
        eventually(lambda: "this node goes away" in nodes.daemons[1].log_text())
    for attempt in attempts:
        told = [rank.ask("watch", attempt=attempt) for rank in nodes.ranks]
        assert [each["state"] for each in told] == ["COMMITTED"] * 2
    written = {
        step: (nodes.run / f"step-{step}" / "__1_0.distcp").stat().st_mtime_ns for step in (1, 2, 3)
    }
    assert sorted(written, key=lambda step: written[step]) == [3, 2, 1]
    assert all(nodes.is_whole(step, str(step)) for step in (1, 2, 3))
    said = nodes.daemons[1].log_text()
    assert "step 1 of" in said.partition("waits for a newer step")[0]
    assert "goes away" not in nodes.daemons[0].log_text()


def test_ranks_of_all_nodes_hear_of_it_at_the_same_step_and_save_once_more(
    daemons: list[Daemon], notice: Path, tmp_path: Path
) -> None:
    sockets = [daemon.socket for daemon in daemons]
    started = ranks.start(PROGRAM, tmp_path, ranks=2, env=daemons[0].env, sockets=sockets)
    eventually(lambda: len(list(tmp_path.glob("*.trains"))) == 2, timeout_s=100)
    notice.write_text(HOUR)
    said = ranks.outputs(started)
    assert said[0] == said[1]
    step, cause = said[0].split(" notice in ")
    assert int(step) >= 10
    assert str(notice) in cause
    assert (tmp_path / "e" / "r" / f"step-{step}" / "manifest.json").exists()
