"""The daemon of either node is killed or paused at each state of an attempt that all have staged."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

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


def test_a_daemon_that_was_killed_before_its_rank_had_sealed_is_given_up_by_name(
    shared: Shared,
) -> None:
    nodes = shared.nodes
    shared.sequence, shared.step = shared.sequence + 1, shared.step + 1
    nodes.stage(shared.sequence, shared.step, salt=shared.salt, plan_hash=shared.salt)
    nodes.seal(only=[LEADER])
    nodes.daemons[OTHER].kill()
    nodes.daemons[OTHER].start()
    with pytest.raises(errors.Aborted, match="it restarted before that was staged; save again"):
        nodes.seal(only=[OTHER])
    nodes.watch(only=[LEADER])
    (told,) = nodes.told(only=[LEADER])
    assert shared.check(told) == "ABORTED"
    assert f"daemon {nodes.names[OTHER]} (rank 1) did not deliver" in told["reason"]
    shared.save()
