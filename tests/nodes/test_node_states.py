"""The daemon of either node is killed or paused at each state of an attempt that all have staged."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ckptd_proto import errors
from fakes.apart import CALLS, LEADER, OTHER, Shared, apart

pytestmark = pytest.mark.timeout(240)

# The call in which the node is caught, and whether that was done.
STATES = [
    (LEADER, "staged", "making a place for images", False),
    (LEADER, "local", "writing a receipt", False),
    (LEADER, "delivered", "naming a receipt", True),
    (LEADER, "durable", "writing the manifest", False),
    (LEADER, "durable, just before the rename", "naming the step", False),
    (LEADER, "committed, just after the rename", "naming the step", True),
    (OTHER, "staged", "making a place for images", False),
    (OTHER, "local", "writing a receipt", False),
    (OTHER, "delivered", "naming a receipt", True),
]
# The call in which a daemon is caught that commits for the leader, and whether that was done.
COMMITTING = [
    ("writing the manifest", False),
    ("naming the step", False),
    ("naming the step", True),
]
# What the leader was about to do then, the other does for it.
TAKEN_OVER = {"durable", "durable, just before the rename", "committed, just after the rename"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with apart(tmp_path_factory.mktemp("shared")) as one:
        yield one


@pytest.mark.parametrize(("node", "state", "what", "done"), STATES)
def test_a_daemon_that_was_killed_finishes_its_part_when_it_is_back(
    shared: Shared, node: int, state: str, what: str, done: bool
) -> None:
    call, path, _ = CALLS[what]
    daemon = shared.nodes.daemons[node]
    with shared.seen[node].stalls(call, path, done=done) as rule:
        shared.begin()
        rule.wait_met()
        os.kill(daemon.pid, signal.SIGKILL)
    daemon.wait_killed()
    if state in TAKEN_OVER:
        other = shared.told(1 - node)
        daemon.start()
    else:
        daemon.start()
        other = shared.told(1 - node)
    assert shared.check(other, shared.told(node)) == "COMMITTED"


@pytest.mark.parametrize(("node", "state", "what", "done"), STATES)
def test_a_daemon_that_was_paused_agrees_when_it_goes_on(
    shared: Shared, node: int, state: str, what: str, done: bool
) -> None:
    call, path, _ = CALLS[what]
    daemon = shared.nodes.daemons[node]
    told = {}
    with shared.seen[node].stalls(call, path, done=done) as rule:
        shared.begin()
        rule.wait_met()
        os.kill(daemon.pid, signal.SIGSTOP)
    if state in TAKEN_OVER:
        told[1 - node] = shared.told(1 - node)
        assert shared.check(told[1 - node]) == "COMMITTED"
    os.kill(daemon.pid, signal.SIGCONT)
    for one in {LEADER, OTHER} - told.keys():
        told[one] = shared.told(one)
    assert shared.check(*told.values()) == "COMMITTED"


@contextmanager
def taken_over(shared: Shared, what: str, *, done: bool) -> Iterator[None]:
    """Inside, the leader was killed when it was to commit, and the other is caught as it does."""
    call, path, _ = CALLS[what]
    leader = shared.nodes.daemons[LEADER]
    with shared.seen[OTHER].stalls(call, path, done=done) as other:
        with shared.seen[LEADER].stalls("write", "*manifest.json*") as rule:
            shared.begin()
            rule.wait_met()
            os.kill(leader.pid, signal.SIGKILL)
        leader.wait_killed()
        other.wait_met()
        yield


@pytest.mark.parametrize("first", [LEADER, OTHER], ids=["leader", "other"])
@pytest.mark.parametrize(("what", "done"), COMMITTING)
def test_who_took_over_and_was_killed_is_followed_by_whoever_is_back_first(
    shared: Shared, what: str, done: bool, first: int
) -> None:
    daemons = shared.nodes.daemons
    with taken_over(shared, what, done=done):
        os.kill(daemons[OTHER].pid, signal.SIGKILL)
    daemons[OTHER].wait_killed()
    daemons[first].start()
    told = shared.told(first)
    assert shared.check(told) == "COMMITTED"
    daemons[1 - first].start()
    assert shared.check(told, shared.told(1 - first)) == "COMMITTED"


@pytest.mark.parametrize(("what", "done"), COMMITTING)
def test_who_took_over_and_was_paused_agrees_with_a_leader_that_is_back(
    shared: Shared, what: str, done: bool
) -> None:
    leader, other = shared.nodes.daemons
    with taken_over(shared, what, done=done):
        os.kill(other.pid, signal.SIGSTOP)
    leader.start()
    told = shared.told(LEADER)
    assert shared.check(told) == "COMMITTED"
    os.kill(other.pid, signal.SIGCONT)
    assert shared.check(told, shared.told(OTHER)) == "COMMITTED"


@pytest.mark.parametrize("lost", [LEADER, OTHER], ids=["leader", "other"])
def test_a_daemon_that_was_killed_before_its_rank_had_sealed_is_given_up_by_name(
    shared: Shared, lost: int
) -> None:
    nodes, left = shared.nodes, 1 - lost
    shared.sequence, shared.step = shared.sequence + 1, shared.step + 1
    nodes.stage(shared.sequence, shared.step, salt=shared.salt, plan_hash=shared.salt)
    nodes.seal(only=[left])
    nodes.daemons[lost].kill()
    nodes.daemons[lost].start()
    with pytest.raises(errors.Aborted, match="it restarted before that was staged; save again"):
        nodes.seal(only=[lost])
    nodes.watch(only=[left])
    (told,) = nodes.told(only=[left])
    assert shared.check(told) == "ABORTED"
    assert f"daemon {nodes.names[lost]} (rank {lost}) did not deliver" in told["reason"]
    shared.save()
