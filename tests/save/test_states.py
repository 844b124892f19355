"""Every process is killed at every state of an attempt, in every company, by one, two and four ranks.

What all ranks had staged is finished, by the daemon's next life if need be; what they had not is
aborted and leaves nothing; and whoever was killed, the next save works.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fakes.cluster import Cluster, cluster
from fakes.daemon import short_directory
from fakes.tracing import STALLS, tampered
from fakes.waiting import eventually

pytestmark = pytest.mark.timeout(240)

OPEN = ["opened", "reserved", "copied", "half sealed"]

# Where the daemon is held in each state that follows: the call for that file, and what is there then.
STAGED = {
    "staged": ("mkdir", "{attempt}", "{run}"),
    "local": ("pwrite64", "{attempt}/manifest.json", "{attempt}/manifest.json"),
    "durable": ("rename", "{attempt}", "{attempt}/manifest.json"),
    "renamed": ("fsync", "{run}", "{run}/step-{step}"),
}
COMMITTED = "committed"
DAEMON, ALL = "the daemon", "all"


def cases() -> Iterator[tuple[int, str, int | str]]:
    """Yield how many ranks there are, what state the attempt is in, and who is killed then."""
    for size in (1, 2, 4):
        for state in [*OPEN, *STAGED, COMMITTED]:
            if size == 1 and state == "half sealed":
                continue  # as it is when it is copied
            for victim in [*range(size), DAEMON, ALL]:
                yield size, state, victim


class Node:
    """One daemon and its ranks, which save step after step."""

    def __init__(self, its: Cluster) -> None:
        self.its = its
        self.daemon = its.daemons[0]
        self.client = self.daemon.client()
        self.step = 0

    @property
    def salt(self) -> str:
        return f"{self.step}-"

    def save(self) -> None:
        self.step += 1
        self.its.save(self.step, self.step, salt=self.salt)
        assert self.its.is_whole(self.step, self.salt)

    @contextmanager
    def held(self, state: str) -> Iterator[str]:
        """Bring another step to *state* and, inside, no further; give its attempt."""
        its, self.step = self.its, self.step + 1
        attempt = its.open(self.step, self.step)
        if state != "opened":
            its.reserve()
        if state not in {"opened", "reserved"}:
            its.copy(salt=self.salt)
        if state == "half sealed" and self.sealed:
            its.seal(only=self.sealed)
        elif state == COMMITTED:
            its.seal()
            assert set(its.outcomes()) == {"COMMITTED"}
        if state not in STAGED:
            yield attempt
            return
        call, where, sign = (
            text.format(attempt=its.run / ".attempts" / attempt, run=its.run, step=self.step)
            for text in STAGED[state]
        )
        with tampered(self.daemon.pid, f"{call}:{STALLS}", on=[Path(where)]):
            its.seal()
            eventually(Path(sign).exists)
            yield attempt

    @property
    def sealed(self) -> list[int]:
        """The ranks that have sealed when half have."""
        return list(range(len(self.its.ranks) // 2))

    def kill(self, victim: int | str) -> list[int]:
        """Kill a rank, the daemon, or all; return the ranks that live."""
        ranks = list(range(len(self.its.ranks)))
        dead = [victim] if isinstance(victim, int) else ranks if victim == ALL else []
        for rank in dead:
            self.its.ranks[rank].kill()
        if not isinstance(victim, int):
            os.kill(self.daemon.pid, signal.SIGKILL)
        return [rank for rank in ranks if rank not in dead]

    def told(self, attempt: str, ranks: list[int]) -> list[Any]:
        if not ranks:
            return []
        self.its.watch(only=ranks, attempt=attempt)
        return self.its.told(only=ranks)

    def busy_slots(self) -> int:
        arena = self.client.status().arena
        return arena.slots - arena.idle_slots


@pytest.fixture(scope="module")
def node_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Node]]:
    """Gives the node of so many ranks, which has a step."""
    with ExitStack() as stack:

        @cache
        def start(size: int) -> Node:
            short = stack.enter_context(short_directory())
            root = tmp_path_factory.mktemp("states")
            one = Node(stack.enter_context(cluster(short, root, 1, each=size)))
            one.save()
            return one

        yield start


@pytest.mark.parametrize(("size", "state", "victim"), list(cases()))
def test_what_was_staged_is_finished_and_what_was_not_leaves_nothing(
    node_of: Callable[[int], Node], size: int, state: str, victim: int | str
) -> None:
    node = node_of(size)
    its = node.its
    with node.held(state) as attempt:
        alive = node.kill(victim)
    if not isinstance(victim, int):
        node.daemon.wait_killed()
        assert node.step not in its.steps() or state in {"renamed", COMMITTED}
        node.daemon.start()
    is_staged = state in STAGED or state == COMMITTED
    if state == "half sealed" and victim in node.sealed:
        its.seal(only=[rank for rank in alive if rank not in node.sealed])
        is_staged = True
    told = node.told(attempt, alive)
    if is_staged:
        assert [one["state"] for one in told] == ["COMMITTED"] * len(alive)
        eventually(lambda: node.step in its.steps())
        assert its.is_whole(node.step, node.salt)
    else:
        died = f"rank {victim} (pid " if isinstance(victim, int) else "before"
        assert [one["state"] for one in told if died in one["reason"]] == ["ABORTED"] * len(alive)
        assert node.step not in its.steps()
    if not alive:  # the memory of the dead is nobody's; what is committed may be read there yet
        eventually(lambda: node.busy_slots() == 0)
    its.revive()
    node.save()
    eventually(lambda: node.busy_slots() == 0)
    eventually(lambda: its.left() == [])
