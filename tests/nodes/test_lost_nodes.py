"""Daemons that are killed or paused while their part of a save is on its way, and come back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckptd_proto import errors
from fakes.cluster import Cluster, cluster
from fakes.daemon import Daemon
from fakes.rank import Rank
from fakes.tracing import STALLS, tampered
from fakes.waiting import eventually

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def two(short_path: Path, tmp_path: Path) -> Iterator[Cluster]:
    """Nodes that take over from each other in haste."""
    with cluster(short_path, tmp_path, 2, takeover_s=1) as nodes:
        yield nodes


@pytest.fixture
def hasty(short_path: Path, tmp_path: Path) -> Iterator[Cluster]:
    """Nodes that do not wait long for each other, either."""
    with cluster(short_path, tmp_path, 2, takeover_s=1, peers_wait_s=8) as nodes:
        yield nodes


@contextmanager
def paused(daemon: Daemon) -> Iterator[None]:
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def delivered(nodes: Cluster, node: int) -> bool:
    return bool(list(nodes.run.glob(f".attempts/*/.receipts/{nodes.names[node]}.json")))


def test_the_next_node_commits_for_one_that_is_paused_and_that_one_agrees_later(
    two: Cluster,
) -> None:
    two.stage(0)
    two.seal(only=[0])
    two.watch(only=[0])
    eventually(lambda: delivered(two, 0))
    with paused(two.daemons[0]):
        two.seal(only=[1])
        assert two.outcomes(only=[1]) == ["COMMITTED"]
        assert two.is_whole()
    assert [told["state"] for told in two.told(only=[0])] == ["COMMITTED"]
    two.save(1, step=8)
    assert two.is_whole(7)
    assert two.is_whole(8)


def test_a_save_that_all_nodes_staged_survives_every_daemon(two: Cluster) -> None:
    attempt = two.stage(0)
    two.seal(only=[0])
    eventually(lambda: delivered(two, 0))
    two.daemons[0].kill()
    with tampered(two.daemons[1].pid, f"fsync:{STALLS}"):
        two.seal(only=[1])
        os.kill(two.daemons[1].pid, signal.SIGKILL)
    two.daemons[1].kill()
    assert two.steps() == []
    for daemon in two.daemons:
        daemon.start()
    for rank in two.ranks:
        assert rank.ask("watch", attempt=attempt)["state"] == "COMMITTED"
    assert two.is_whole()


def test_what_a_killed_daemon_had_begun_to_write_is_not_left_in_the_step(two: Cluster) -> None:
    attempt = two.stage(0)
    with tampered(two.daemons[1].pid, f"fallocate:{STALLS}"):
        two.seal()
        eventually(lambda: list(two.run.glob(".attempts/*/.*/__1_0.distcp")))
        os.kill(two.daemons[1].pid, signal.SIGKILL)
    two.daemons[1].kill()
    two.daemons[1].start()
    for rank in two.ranks:
        assert rank.ask("watch", attempt=attempt)["state"] == "COMMITTED"
    assert two.is_whole()


@pytest.mark.parametrize("how", ["killed", "paused"])
def test_a_node_that_does_not_deliver_is_named_and_late_it_changes_nothing(
    hasty: Cluster, how: str
) -> None:
    two = hasty
    two.stage(0)
    late = two.daemons[1]
    with tampered(late.pid, f"fsync:{STALLS}") as pause:
        two.seal()
        two.watch(only=[0])
        if how == "killed":
            os.kill(late.pid, signal.SIGKILL)
        else:
            pause()
    (told,) = two.told(only=[0])
    assert told["state"] == "ABORTED"
    assert f"daemon {two.names[1]} (rank 1) did not deliver step 7" in told["reason"]
    if how == "killed":
        late.kill()
        late.start()
    else:
        os.kill(late.pid, signal.SIGCONT)
    assert two.ranks[1].ask("watch") == told
    assert two.steps() == []
    two.save(1)
    assert two.is_whole()


def test_a_paused_node_of_rank_0_cannot_bring_back_what_was_given_up(hasty: Cluster) -> None:
    two = hasty
    two.stage(0)
    two.seal(only=[1])
    with paused(two.daemons[0]):
        two.ranks[0].begin("seal", plan=two.plan)
        told = two.ranks[1].ask("watch")
        assert told["state"] == "ABORTED"
        assert f"daemon {two.names[0]} (rank 0) did not deliver step 7" in told["reason"]
    two.ranks[0].answer()
    assert two.ranks[0].ask("watch") == told
    assert two.steps() == []


def test_a_later_life_fences_the_earlier_on_every_node(two: Cluster, tmp_path: Path) -> None:
    two.save(0)
    other = two.daemons[1]
    with Rank(other.socket, tmp_path, 0, 1, incarnation="later") as later:
        later.ask("join")
        later.ask("open", sequence=0, step=9)
        with pytest.raises(errors.FailedPrecondition, match=r"newer incarnation \(later\)"):
            two.ranks[0].ask("open", sequence=1, step=8, daemons=two.names)
