"""The link `latest` names a step that is durable, and no other, whatever the disk does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd.link.connection import Connection
from ckptd.saving import keeping
from fakes.cluster import Cluster, cluster
from fakes.tracing import recorded, tampered
from fakes.waiting import eventually

# The call that fails, the last of which makes the step durable, and for what.
COMMITTING = [
    ("fsync", "{attempt}/manifest.json"),
    ("fsync", "{attempt}"),
    ("rename", "{attempt}"),
    ("fsync", "{run}"),
]


@pytest.fixture
def its(short_path: Path, tmp_path: Path) -> Iterator[Cluster]:
    """A rank, whose daemon tells at once of what a disk fails with, and step 1, which is linked."""
    root = tmp_path / "root"
    with cluster(short_path, root, 1, persist_retry_s=0) as one:
        one.save(1, 1)
        eventually(lambda: latest(one) == "step-1")
        settle(one)
        yield one


def latest(its: Cluster) -> str:
    link = its.run / "latest"
    return str(link.readlink()) if link.is_symlink() else ""


def settle(its: Cluster) -> None:
    """Return when nobody moves links any more: whoever pins a step has its turn after them."""
    connection = Connection.open(its.daemons[0].socket)
    keeping.pin(connection, keeping.Address(its.root, "e", "r", 1), pinned=True)


@pytest.mark.parametrize(("call", "where"), COMMITTING)
def test_a_step_that_does_not_become_durable_leaves_the_link_to_the_one_before(
    its: Cluster, call: str, where: str
) -> None:
    attempt = its.run / ".attempts" / its.stage(2, 2, salt="2-")
    path = Path(where.format(attempt=attempt, run=its.run))
    with tampered(its.daemons[0].pid, f"{call}:error=EIO", on=[path]):
        its.seal()
        assert its.outcomes() == ["ABORTED"]
    settle(its)
    assert latest(its) == "step-1"
    its.save(3, 3)
    eventually(lambda: latest(its) == "step-3")


def test_the_link_is_made_only_when_the_name_of_the_step_is_on_the_disk(
    its: Cluster, tmp_path: Path
) -> None:
    its.stage(2, 2, salt="2-")
    log = tmp_path / "calls"
    with recorded(its.daemons[0].pid, "rename,fsync,symlink,symlinkat", log, paths=True):
        its.seal()
        assert its.outcomes() == ["COMMITTED"]
        eventually(lambda: latest(its) == "step-2")
        settle(its)
    done = calls(log)
    named = first(done, "rename(", f'"{its.run}/step-2"')
    synced = first(done, "fsync(", f"<{its.run}>", after=named)
    linked = first(done, "symlink", '"step-2"')
    assert named < synced < linked


def calls(log: Path) -> list[str]:
    """Return the recorded calls in the order in which they ended."""
    begun: dict[str, str] = {}
    found = []
    for line in log.read_text().splitlines():
        thread, call = line.split(maxsplit=1)
        if "<unfinished" in call:
            begun[thread] = call
        else:
            found.append(begun.pop(thread, "") + call)
    return found


def first(done: list[str], call: str, about: str, after: int = -1) -> int:
    """Return where that call is, the first one *after* another."""
    return next(
        at for at, line in enumerate(done) if at > after and line.startswith(call) and about in line
    )
