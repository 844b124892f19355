"""Nodes that share a directory only: it stalls, fails, or tells them late what others have done.

Each is in namespaces of its own, so that nothing but the directory leads from one to the other.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fakes.apart import CALLS, LEADER, OTHER, Shared, apart

pytestmark = pytest.mark.timeout(240)

LONG_S, SHORT_S = 5.0, 2.0

EACH = [(what, node) for what, (_, _, nodes) in CALLS.items() for node in nodes]
# Nothing can be said before it works again, by this node: the other waits for as long as it may.
KEPT_WAITING = [("looking for the attempt", OTHER)]
# These may be done although their caller is told that they failed.
IN_DOUBT = [(what, node) for what, node in EACH if CALLS[what][0] in {"mkdir", "rename", "link"}]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with apart(tmp_path_factory.mktemp("shared")) as one:
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


@contextmanager
def late(shared: Shared, seconds: float) -> Iterator[None]:
    """Each node believes so long what it has seen, though the other has changed it."""
    for mount in shared.seen:
        mount.lag(seconds)
    yield
    for mount in shared.seen:
        mount.lag(0)


def test_nodes_that_see_late_what_the_other_does_commit_together(shared: Shared) -> None:
    with late(shared, LONG_S):
        shared.save()
        shared.save(again=True)


def test_nodes_that_see_it_late_agree_that_a_save_was_given_up(shared: Shared) -> None:
    call, path, _ = CALLS["writing an image"]
    with late(shared, SHORT_S), shared.seen[OTHER].fails(call, path):
        shared.begin()
        told = shared.told(LEADER), shared.told(OTHER)
        assert shared.check(*told) == "ABORTED"
        assert told[0] == told[1]


def test_nodes_that_see_it_late_agree_though_one_has_taken_over(shared: Shared) -> None:
    call, path, _ = CALLS["naming the step"]
    with late(shared, SHORT_S):
        with shared.seen[LEADER].stalls(call, path):
            shared.begin()
            assert shared.check(shared.told(OTHER)) == "COMMITTED"
        assert shared.check(shared.told(LEADER)) == "COMMITTED"


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
