"""A node that has no memory left for a save, beside one that has: the ranks of all do the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckptd.saving.fullness import reason_to_skip, victim
from ckptd_proto import errors
from fakes import ranks
from fakes.cluster import SIZE, Cluster
from fakes.daemon import Daemon
from fakes.tracing import STALLS, tampered
from fakes.waiting import eventually

pytestmark = pytest.mark.timeout(240)
PROGRAM = Path(__file__).parent / "programs" / "crowded.py"


@pytest.fixture
def daemons(short_path: Path) -> Iterator[list[Daemon]]:
    """Two nodes, of which the second has room for two saves at once; the first, for eight."""
    with (
        Daemon(short_path / "0", slots_per_rank=8) as roomy,
        Daemon(short_path / "1", slots_per_rank=2) as tight,
    ):
        yield [roomy, tight]


@pytest.fixture
def nodes(daemons: list[Daemon], tmp_path: Path) -> Iterator[Cluster]:
    both = Cluster(daemons, tmp_path, each=1, at=tmp_path, incarnation="i")
    yield both
    both.end()


@contextmanager
def slow(nodes: Cluster) -> Iterator[None]:
    """While inside, no file of an image gets its room on the disk of the second node."""
    nodes.ranks[1].ask("prepare", size=2 * SIZE)  # before: that takes room in memory the same way
    with tampered(nodes.daemons[1].pid, f"fallocate:{STALLS}"):
        yield


def staged(nodes: Cluster, sequence: int) -> str:
    attempt = nodes.stage(sequence, sequence, salt=str(sequence))  # or it would only be linked
    nodes.seal()
    return attempt


def written(nodes: Cluster, sequence: int) -> None:
    """Return when the second node has begun to write that save."""
    eventually(lambda: list(nodes.run.glob(f".attempts/{sequence}-*/.*/__1_0.distcp")))


def test_each_daemon_says_what_its_ranks_have_taken_and_none_decides_alone(nodes: Cluster) -> None:
    nodes.save(0, 0)
    with slow(nodes):
        staged(nodes, 1)
        written(nodes, 1)
        staged(nodes, 2)
        rooms = [rank.ask("room") for rank in nodes.ranks]
        assert [room["full"] for room in rooms] == [False, True]
        assert rooms[1] | {"full": True} == {
            "full": True,
            "waiting": [2],
            "writing": True,
            "held": [1, 2],
        }
        assert "step 3 was skipped: every slot on the node of rank 1" in reason_to_skip(3, rooms)
        for rank in nodes.ranks:
            with pytest.raises(errors.InvalidArgument, match="ask each for its Room"):
                rank.ask("open", sequence=3, step=3, daemons=nodes.names, when_full="SKIP")
    eventually(lambda: nodes.steps() == [0, 1, 2])
    assert nodes.outcomes() == ["COMMITTED"] * 2


def test_what_waits_on_the_node_without_room_gives_way_on_all(nodes: Cluster) -> None:
    nodes.save(0, 0)
    with slow(nodes):
        staged(nodes, 1)
        written(nodes, 1)
        old = staged(nodes, 2)
        eventually(lambda: nodes.ranks[0].ask("room")["waiting"] == [])  # there, it is written
        gives_way = victim([rank.ask("room") for rank in nodes.ranks])
        assert gives_way == 2
        nodes.open(3, 3, supersedes=gives_way)
        told = [rank.ask("watch", attempt=old) for rank in nodes.ranks]
        assert [each["state"] for each in told] == ["ABORTED"] * 2
        assert [each["superseded_by"] for each in told] == [3, 3]
        nodes.reserve()
        nodes.copy(salt="3")
        nodes.seal()
    assert nodes.outcomes() == ["COMMITTED"] * 2
    eventually(lambda: nodes.steps() == [0, 1, 3])  # each as soon as both nodes have it


def test_what_is_being_written_everywhere_is_not_given_up_for_another(nodes: Cluster) -> None:
    nodes.save(0, 0)
    with slow(nodes):
        attempt = staged(nodes, 1)
        written(nodes, 1)
        eventually(lambda: nodes.ranks[0].ask("room")["writing"])
        nodes.open(2, 2, supersedes=1)
    told = [rank.ask("watch", attempt=attempt) for rank in nodes.ranks]
    assert [each["state"] for each in told] == ["COMMITTED"] * 2


def test_ranks_in_a_process_group_skip_or_supersede_the_same_saves(
    daemons: list[Daemon], tmp_path: Path
) -> None:
    sockets = [daemon.socket for daemon in daemons]
    started = ranks.start(PROGRAM, tmp_path, ranks=2, env=daemons[0].env, sockets=sockets)

    def all_are(what: str) -> None:
        eventually(lambda: len(list(tmp_path.glob(what))) == 2, timeout_s=100)

    for when_full in ("skip", "supersede"):
        all_are(f"{when_full}.*.ready")
        with tampered(daemons[1].pid, f"fallocate:{STALLS}"):
            (tmp_path / f"{when_full}.slow").touch()
            all_are(f"{when_full}.*.saved")
    said = ranks.outputs(started)
    expected = [
        "0 committed, 1 committed, 2 committed, 3 skipped, 4 committed",
        "0 committed, 1 committed, 2 superseded by 3, 3 committed, 4 committed",
    ]
    assert [each.splitlines() for each in said] == [expected, expected]
