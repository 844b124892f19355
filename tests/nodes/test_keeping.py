"""What becomes of committed steps, and of what did not change, when several nodes save them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd.link.connection import Connection
from ckptd.saving.keeping import Address, pin, retain
from ckptd.saving.retention import Retention
from fakes.cluster import Cluster, cluster
from fakes.waiting import eventually

pytestmark = pytest.mark.timeout(240)
RULES = Retention(latest=1, best=1, monitor="loss")


@pytest.fixture
def two(short_path: Path, tmp_path: Path) -> Iterator[Cluster]:
    """Nodes that take over from each other in haste, and a run that keeps to `RULES`."""
    with cluster(short_path, tmp_path, 2, takeover_s=1) as nodes:
        nodes.save(0, 1, salt="1")
        retain(connection(nodes, 0), nodes.root, "e", "r", RULES)
        yield nodes


def connection(nodes: Cluster, node: int) -> Connection:
    return Connection.open(nodes.daemons[node].socket)


def link(nodes: Cluster, name: str) -> str:
    path = nodes.run / name
    return str(path.readlink()) if path.is_symlink() else ""


def removals(nodes: Cluster) -> list[str]:
    """The steps that somebody removed, once for each who says so."""
    lines = "".join(daemon.log_text() for daemon in nodes.daemons).splitlines()
    said = [
        line.partition('msg="removed step ')[2].split()[0] for line in lines if "removed" in line
    ]
    return sorted(said)


def take_over(nodes: Cluster, sequence: int, step: int, loss: float) -> None:
    """Have the second node commit *step*, while the first can do nothing."""
    nodes.stage(sequence, step, salt=str(step))
    nodes.seal(only=[0], loss=loss)
    receipt = f".attempts/{sequence}-*/.receipts/{nodes.names[0]}.json"
    eventually(lambda: list(nodes.run.glob(receipt)))
    os.kill(nodes.daemons[0].pid, signal.SIGSTOP)
    nodes.seal(only=[1])
    assert nodes.outcomes(only=[1]) == ["COMMITTED"]


def test_the_rules_of_the_run_are_kept_to_once_by_the_node_that_commits(two: Cluster) -> None:
    for number, loss in enumerate([0.2, 0.9, 0.4], start=1):
        two.save(number, number + 1, salt=str(number), loss=loss)
    eventually(lambda: two.steps() == [2, 4])
    eventually(lambda: (link(two, "latest"), link(two, "best")) == ("step-4", "step-2"))
    eventually(lambda: removals(two) == ["1", "3"])
    eventually(lambda: two.left() == [])


def test_a_node_that_took_over_keeps_to_them_and_moves_the_links(two: Cluster) -> None:
    two.save(1, 2, salt="2", loss=0.4)
    eventually(lambda: two.steps() == [2])
    eventually(lambda: (link(two, "latest"), link(two, "best")) == ("step-2", "step-2"))
    try:
        take_over(two, 2, 3, loss=0.1)
        eventually(lambda: two.steps() == [3])
        eventually(lambda: (link(two, "latest"), link(two, "best")) == ("step-3", "step-3"))
    finally:
        os.kill(two.daemons[0].pid, signal.SIGCONT)
    assert two.outcomes(only=[0]) == ["COMMITTED"]
    two.save(3, 4, salt="4", loss=0.3)
    eventually(lambda: link(two, "latest") == "step-4")
    assert link(two, "best") == "step-3"
    assert two.steps() == [3, 4]
    assert removals(two) == ["1", "2"]


def test_what_is_pinned_through_one_node_stays_whichever_commits(two: Cluster) -> None:
    address = Address(two.root, "e", "r", 1)
    assert pin(connection(two, 1), address, pinned=True)
    two.save(1, 2, salt="2", loss=0.4)
    two.save(2, 3, salt="3", loss=0.3)
    eventually(lambda: two.steps() == [1, 3])
    assert pin(connection(two, 0), address, pinned=False)
    try:
        take_over(two, 3, 4, loss=0.2)
        eventually(lambda: two.steps() == [4])
    finally:
        os.kill(two.daemons[0].pid, signal.SIGCONT)


@pytest.fixture
def plain(short_path: Path, tmp_path: Path) -> Iterator[Cluster]:
    """Nodes whose run keeps everything."""
    with cluster(short_path, tmp_path, 2) as nodes:
        yield nodes


def shared(nodes: Cluster, one: int, other: int) -> list[bool]:
    """Say for each rank whether both steps have its image once on the disk."""
    return [nodes.inode(one, rank.rank) == nodes.inode(other, rank.rank) for rank in nodes.ranks]


def test_what_did_not_change_is_linked_on_every_node_and_what_did_is_not(plain: Cluster) -> None:
    plain.save(0, 1)
    plain.save(1, 2)
    plain.save(2, 3, salt="new")
    plain.save(3, 4, salt="new")
    assert shared(plain, 1, 2) == shared(plain, 3, 4) == [True, True]
    assert shared(plain, 2, 3) == [False, False]
    for step, salt in [(1, ""), (2, ""), (3, "new"), (4, "new")]:
        assert plain.is_whole(step, salt)


def test_a_step_that_is_replaced_is_linked_to_the_one_before_it_and_later_ones_to_it(
    plain: Cluster,
) -> None:
    plain.save(0, 1)
    plain.save(1, 2, salt="wrong")
    plain.save(2, 2, replace=True)
    assert shared(plain, 1, 2) == [True, True]
    plain.save(3, 2, salt="better", replace=True)
    plain.save(4, 3, salt="better")
    assert shared(plain, 2, 3) == [True, True]
    assert plain.is_whole(1)
    assert plain.is_whole(2, "better")
    assert plain.is_whole(3, "better")


def test_what_did_not_change_is_linked_to_a_step_that_the_others_have_not_delivered(
    plain: Cluster,
) -> None:
    plain.stage(0, 1)
    plain.seal(only=[0])
    plain.stage(1, 2, only=[0])
    plain.seal(only=[0])
    receipt = f".attempts/1-*/.receipts/{plain.names[0]}.json"
    eventually(lambda: list(plain.run.glob(receipt)))  # and 1 is not a step yet
    plain.seal(only=[1])
    plain.stage(1, 2, only=[1])
    plain.seal(only=[1])
    assert plain.outcomes() == ["COMMITTED"] * 2
    eventually(lambda: plain.steps() == [1, 2])
    assert shared(plain, 1, 2) == [True, True]
    assert plain.is_whole(1)
    assert plain.is_whole(2)
