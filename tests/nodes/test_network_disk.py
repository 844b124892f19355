"""Nodes that share a directory only: it stalls, fails, or tells them late what others have done.

Each is in namespaces of its own, so that nothing but the directory leads from one to the other.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from ckptd_proto import errors
from fakes.cluster import Cluster, cluster
from fakes.daemon import short_directory
from fakes.netdisk.mount import Mount, mounts

pytestmark = pytest.mark.timeout(120)

LEADER, OTHER = 0, 1
LAG_S = 5.0

# Which call, for what, on which nodes: all that a node does with the directory in one save.
CALLS = {
    "making the attempt": ("mkdir", "*.new", [LEADER]),
    "naming the attempt": ("rename", "*.new", [LEADER]),
    "looking for the attempt": ("getattr", "*/.attempts/*-????????????????", [LEADER, OTHER]),
    "making a place for images": ("mkdir", "*/.????????????", [LEADER, OTHER]),
    "making an image": ("create", "*_0.distcp", [LEADER, OTHER]),
    "writing an image": ("write", "*_0.distcp", [LEADER, OTHER]),
    "syncing an image": ("fsync", "*_0.distcp", [LEADER, OTHER]),
    "linking an image": ("link", "*_1.distcp", [LEADER, OTHER]),
    "writing sums": ("write", "*.sums", [LEADER, OTHER]),
    "naming an image": ("rename", "*_0.distcp", [LEADER, OTHER]),
    "deleting the place for images": ("rmdir", "*/.????????????", [LEADER, OTHER]),
    "writing a receipt": ("write", "*/.receipts/*", [LEADER, OTHER]),
    "naming a receipt": ("rename", "*/.receipts/*", [LEADER, OTHER]),
    "reading receipts": ("open", "*/.receipts/*", [LEADER]),
    "reading the fence": ("open", "*/.fence.json", [LEADER]),
    "writing the manifest": ("write", "*manifest.json*", [LEADER]),
    "naming the step": ("rename", "*/step-*", [LEADER]),
    "syncing the step's name": ("fsyncdir", "/e/r", [LEADER, OTHER]),
    "reading the manifest": ("read", "*/manifest.json", [LEADER, OTHER]),
    "deleting what is left": ("unlink", "*.gone/*", [LEADER]),
}
EACH = [(what, node) for what, (_, _, nodes) in CALLS.items() for node in nodes]
# Nothing can be said before it works again, by this node: the other waits for as long as it may.
KEPT_WAITING = [("looking for the attempt", OTHER)]
# These may be done although their caller is told that they failed.
IN_DOUBT = [(what, node) for what, node in EACH if CALLS[what][0] in {"mkdir", "rename", "link"}]


class Shared:
    """Two nodes, and the directory as each of them sees it."""

    def __init__(self, nodes: Cluster, seen: list[Mount]) -> None:
        self.nodes, self.seen = nodes, seen
        self.sequence = self.step = 0

    @property
    def salt(self) -> str:
        """What the images that change are made with in this save."""
        return f"{self.sequence}-"

    def begin(self, *, again: bool = False) -> None:
        """Have every rank save another step, or the same *again*, without waiting for it.

        `told` says what that has become.
        """
        self.sequence += 1
        self.step += not again
        how = {"plan_hash": self.salt, "replace": again, "daemons": self.nodes.names}
        for rank in self.nodes.ranks:
            rank.begin(
                "save",
                open=how | {"sequence": self.sequence, "step": self.step},
                images=self.nodes.images(rank.rank),
                copy={"salt": self.salt, "still": self.nodes.still(rank.rank)},
                seal={"plan": self.nodes.plan if rank.rank == 0 else None},
            )

    def told(self, node: int) -> Any:
        """Return the outcome that the rank there is told."""
        try:
            return self.nodes.ranks[node].answer()
        except errors.CkptdError as error:
            return {"state": "ABORTED", "reason": str(error), "error": type(error).__name__}

    def check(self, *told: Any) -> str:
        """All were told the same, and that is what there is; return it."""
        (state,) = {one["state"] for one in told}
        if state == "COMMITTED":
            assert self.nodes.is_whole(self.step, self.salt)
        else:
            assert all(one["reason"] and one["error"] != "Internal" for one in told), told
            assert self.step not in self.nodes.steps()
        return state

    def save(self, *, again: bool = False) -> None:
        self.begin(again=again)
        assert self.check(self.told(LEADER), self.told(OTHER)) == "COMMITTED"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    place = tmp_path_factory.mktemp("shared")
    truth, root = place / "truth", place / "root"
    with short_directory() as short, mounts(truth, root, 2) as seen:
        within = [mount.within for mount in seen]
        settings = {"takeover_s": 1, "peers_wait_s": 8}
        with cluster(short, truth, 2, at=root, within=within, **settings) as nodes:
            one = Shared(nodes, seen)
            one.save()
            yield one


@pytest.mark.parametrize(("what", "node"), EACH)
def test_a_call_that_takes_its_time_only_delays_the_save(
    shared: Shared, what: str, node: int
) -> None:
    call, path, _ = CALLS[what]
    with shared.seen[node].stalls(call, path) as rule:
        shared.begin()
        rule.wait_met()
    assert shared.check(shared.told(LEADER), shared.told(OTHER)) == "COMMITTED"


@pytest.mark.parametrize(
    ("what", "node", "done"),
    [(*one, False) for one in EACH if one not in KEPT_WAITING] + [(*one, True) for one in IN_DOUBT],
)
def test_where_one_node_cannot_do_a_call_both_end_alike(
    shared: Shared, what: str, node: int, done: bool
) -> None:
    """The other learns the end while the fault lasts; what was not done may have been *done*."""
    call, path, _ = CALLS[what]
    with shared.seen[node].fails(call, path, done=done) as rule:
        shared.begin()
        rule.wait_met()
        other = shared.told(1 - node)
    shared.check(other, shared.told(node))
    shared.save()


@pytest.mark.parametrize(
    ("what", "done"),
    [("writing the manifest", False), ("naming the step", False), ("naming the step", True)],
)
def test_the_other_node_commits_while_the_leader_is_stuck_and_late_it_changes_nothing(
    shared: Shared, what: str, done: bool
) -> None:
    call, path, _ = CALLS[what]
    with shared.seen[LEADER].stalls(call, path, done=done):
        shared.begin()
        other = shared.told(OTHER)
        assert shared.check(other) == "COMMITTED"
    assert shared.check(shared.told(LEADER)) == "COMMITTED"
    shared.save()


@pytest.mark.parametrize("node", [LEADER, OTHER])
def test_a_node_that_is_stuck_too_long_is_given_up_by_name_and_late_it_changes_nothing(
    shared: Shared, node: int
) -> None:
    call, path, _ = CALLS["writing an image"]
    with shared.seen[node].stalls(call, path):
        shared.begin()
        told = shared.told(1 - node)
        assert shared.check(told) == "ABORTED"
        name = shared.nodes.names[node]
        assert f"daemon {name} (rank {node}) did not deliver step {shared.step}" in told["reason"]
    assert shared.told(node) == told
    assert shared.check(told) == "ABORTED"
    shared.save()


@pytest.fixture
def late(shared: Shared) -> Iterator[Shared]:
    """Each node believes for a while what it has seen, though the other has changed it."""
    for mount in shared.seen:
        mount.lag(LAG_S)
    yield shared
    for mount in shared.seen:
        mount.lag(0)


def test_nodes_that_see_late_what_the_other_does_commit_together(late: Shared) -> None:
    late.save()
    late.save(again=True)


def test_nodes_that_see_it_late_agree_that_a_save_was_given_up(late: Shared) -> None:
    with late.seen[OTHER].fails(*CALLS["writing an image"][:2]):
        late.begin()
        told = late.told(LEADER), late.told(OTHER)
    assert late.check(*told) == "ABORTED"
    assert told[0] == told[1]


def test_nodes_that_see_it_late_agree_though_one_has_taken_over(late: Shared) -> None:
    with late.seen[LEADER].stalls(*CALLS["naming the step"][:2]):
        late.begin()
        assert late.check(late.told(OTHER)) == "COMMITTED"
    assert late.check(late.told(LEADER)) == "COMMITTED"


def test_a_daemon_starts_though_the_directory_it_has_saves_for_fails(shared: Shared) -> None:
    daemon = shared.nodes.daemons[OTHER]
    with shared.seen[OTHER].stalls(*CALLS["syncing an image"][:2]) as rule:
        shared.begin()
        rule.wait_met()
        os.kill(daemon.pid, signal.SIGKILL)
    daemon.wait_killed()
    with shared.seen[OTHER].fails("opendir", "*/.attempts"):
        daemon.start()
    assert shared.check(shared.told(LEADER), shared.told(OTHER)) == "COMMITTED"
