"""A place that hangs, as a dead network mount does, keeps nobody waiting but those who want it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ckptd.link.connection import Connection
from ckptd_proto import errors
from ckptd_proto.v1 import checkpoints_pb2, saves_pb2
from fakes.cluster import SIZE, Cluster, cluster
from fakes.daemon import Daemon
from fakes.netdisk.mount import Mount, mounts
from fakes.origin import Origin
from fakes.rank import Rank
from fakes.waiting import eventually

pytestmark = pytest.mark.timeout(240)

LOOKS = 60  # more than there are threads for what has none of its own


class Site:
    """A node with two roots: one hangs when it is told to, the other is the test's own disk."""

    def __init__(self, its: Cluster, seen: Mount, hanging: Path, well: Path, other: Rank) -> None:
        self.its, self.seen, self.hanging, self.well, self.other = its, seen, hanging, well, other
        self.daemon = its.daemons[0]
        self.sequence = 0

    def stage(self, step: int) -> str:
        """Stage a step below the root that may hang, and seal it."""
        attempt = self.its.stage(step, step, salt=f"{step}-")
        self.its.seal()
        return attempt

    def check_others_go_on(self, origin: Origin) -> None:
        """What has nothing to do with the root that hangs is saved, and fetched."""
        self.sequence += 1
        with rank_at(self.daemon, self.well, run=f"run{self.sequence}") as new:
            for rank in (self.other, new):
                rank.ask("open", sequence=self.sequence, step=self.sequence)
                rank.ask("reserve", images=[("a", SIZE)])
                rank.ask("copy")
                rank.ask("seal", plan=[("a", SIZE)])
                assert rank.ask("watch")["state"] == "COMMITTED"
                assert self.sequence in rank.ask("steps")
        name, data = f"object{self.sequence}", os.urandom(SIZE)
        origin.put(name, data)
        assert self.daemon.client().fetch(origin.url(name)).read_bytes() == data

    def status(self) -> list[Any]:
        return [one for one in self.daemon.client().status().attempts if one.run == "r"]


@contextmanager
def rank_at(daemon: Daemon, root: Path, **place: str) -> Iterator[Rank]:
    with Rank(daemon.socket, root, 0, 1, **place) as rank:
        rank.ask("join")
        yield rank


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as one:
        yield one


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as one:
        yield one


@pytest.fixture
def site(short_path: Path, tmp_path: Path) -> Iterator[Site]:
    truth, at, well = tmp_path / "truth", tmp_path / "at", tmp_path / "well"
    well.mkdir()
    with ExitStack() as stack:
        (seen,) = stack.enter_context(mounts(truth, at, 1))
        within = ["nsenter", f"--target={seen.process.pid}", "--mount", "--"]
        its = stack.enter_context(
            cluster(short_path, truth, 1, at=at, within=[within], drain_s=0.1)
        )
        other = stack.enter_context(rank_at(its.daemons[0], well, run="other"))
        its.save(0, 0)
        yield Site(its, seen, at, well, other)


@pytest.mark.parametrize(
    ("call", "path"),
    [
        ("write", "*_0.distcp"),  # a writer
        ("mkdir", "*/.attempts/*"),  # who makes way for it
        ("rename", "*/.attempts/*"),  # who commits
    ],
)
def test_others_save_and_fetch_while_one_place_does_not_take_what_is_staged(
    site: Site, origin: Origin, call: str, path: str
) -> None:
    with site.seen.stalls(call, path) as rule:
        site.stage(1)
        rule.wait_met()
        site.check_others_go_on(origin)
        assert site.its.steps() == [0]
    assert site.its.outcomes() == ["COMMITTED"]
    assert site.its.is_whole(1, "1-")


def test_others_join_and_open_while_one_place_is_looked_at(site: Site, origin: Origin) -> None:
    with site.seen.stalls("open", "*/.fence.json") as rule:
        site.its.ranks[0].begin("open", sequence=1, step=1)
        rule.wait_met()
        site.check_others_go_on(origin)
    assert site.its.ranks[0].answer()
    site.its.reserve()
    site.its.copy(salt="1-")
    site.its.seal()
    assert site.its.outcomes() == ["COMMITTED"]


def test_however_many_look_at_a_place_that_hangs_others_go_on(site: Site, origin: Origin) -> None:
    request = checkpoints_pb2.ListCheckpointsRequest(root=str(site.hanging))
    connection = Connection.open(site.daemon.socket)
    with site.seen.stalls("getattr"), site.seen.stalls("opendir") as rule:
        asked = [
            connection.call(lambda stubs: stubs.checkpoints.List(request)) for _ in range(LOOKS)
        ]
        rule.wait_met()
        for call in asked[: LOOKS // 2]:
            call.cancel()
        site.check_others_go_on(origin)
    assert [one.step for one in asked[-1]] == [0]


def test_who_asks_for_a_place_that_hangs_is_told_so_within_its_time(site: Site) -> None:
    request = saves_pb2.JoinRequest(
        root=str(site.hanging), experiment="e", run="new", incarnation="i", world_size=1
    )
    with (
        site.seen.stalls("getattr"),
        pytest.raises(errors.DeadlineExceeded, match=f"{site.hanging}/e/new has not answered"),
    ):
        Connection.open(site.daemon.socket).call(lambda stubs: stubs.saves.Join(request, timeout=8))


def test_a_daemon_starts_while_a_place_it_has_something_staged_for_hangs(
    site: Site, origin: Origin
) -> None:
    with site.seen.stalls("write", "*_0.distcp") as rule:
        attempt = site.stage(1)
        rule.wait_met()
        os.kill(site.daemon.pid, signal.SIGKILL)
    site.daemon.wait_killed()
    looking = site.its.run.relative_to(site.its.root) / ".attempts"
    with site.seen.stalls("opendir", f"/{looking}") as rule:
        site.daemon.start()
        rule.wait_met()
        site.check_others_go_on(origin)
        (found,) = site.status()
        assert (found.state, found.step) == ("staged", 1)
        request = saves_pb2.JoinRequest(
            root=str(site.well), experiment="e", run="late", incarnation="i", world_size=1
        )
        connection = Connection.open(site.daemon.socket)
        assert connection.call(lambda stubs: stubs.saves.Join(request, timeout=30)).job
    site.its.watch(attempt=attempt)
    assert [told["state"] for told in site.its.told()] == ["COMMITTED"]
    assert site.its.is_whole(1, "1-")


def test_who_wants_a_place_that_is_being_taken_up_waits_for_that_and_is_told(
    site: Site, stack: ExitStack
) -> None:
    with site.seen.stalls("write", "*_0.distcp") as rule:
        site.stage(1)
        rule.wait_met()
        os.kill(site.daemon.pid, signal.SIGKILL)
    site.daemon.wait_killed()
    looking = site.its.run.relative_to(site.its.root) / ".attempts"
    with site.seen.stalls("opendir", f"/{looking}") as rule:
        site.daemon.start()
        rule.wait_met()
        late = stack.enter_context(
            Rank(site.daemon.socket, site.hanging, 0, 1, within=site.daemon.within)
        )
        with pytest.raises(errors.DeadlineExceeded, match="it is being taken up after the daemon"):
            late.ask("join", timeout_s=8)
        late.begin("join", timeout_s=60)
    assert late.answer() == site.its.names[0]
    eventually(lambda: site.its.steps() == [0, 1])


def test_a_daemon_ends_while_a_place_hangs(short_path: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "e" / "r" / "step-1" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    os.mkfifo(manifest)  # who reads it hangs, unless it is written
    request = checkpoints_pb2.ListCheckpointsRequest(root=str(tmp_path))
    with Daemon(short_path, drain_s=0.1) as daemon:
        call = Connection.open(daemon.socket).call(lambda stubs: stubs.checkpoints.List(request))
        silent = eventually(lambda: _met(manifest))
        assert daemon.stop() == 0
        call.cancel()
    os.close(silent)


def _met(pipe: Path) -> int | None:
    """Return the other end of *pipe* as soon as somebody reads it."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None
