"""The power goes, at any moment of a save; what was said to be durable is there when it is back."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ckptd
from fakes.cluster import Cluster, cluster
from fakes.daemon import Daemon, arena_of, short_directory
from fakes.disk import Disk, disk
from fakes.rank import content
from fakes.running import ckptd as command
from fakes.tracing import KILLS, STALLS, recorded, tampered
from fakes.waiting import eventually

pytestmark = pytest.mark.timeout(240)

LEFT, LOST = "left", "lost"  # the arena, as by a disk elsewhere whose power goes, or by ours

# The power goes before the daemon's call for that file has done anything.
SAVING = [
    ("mkdir", "{attempt}", LEFT),
    ("fallocate", "{attempt}/__0_0.distcp", LOST),
    ("pwrite64", "{attempt}/__0_0.distcp", LEFT),
    ("fsync", "{attempt}/__0_0.distcp", LOST),
    ("link,linkat", "{attempt}/__0_1.distcp", LEFT),
    ("fsync", "{attempt}/__0_1.distcp.sums", LEFT),
    ("fsync", "{attempt}", LOST),
    ("fsync", "{attempt}/manifest.json", LEFT),
    ("rename", "{attempt}", LEFT),
    ("rename", "{attempt}", LOST),
    ("fsync", "{run}", LEFT),
    ("fsync", "{run}", LOST),
]
REPLACING = [
    ("renameat2", "{attempt}", LEFT),
    ("fsync", "{run}", LEFT),
    ("fsync", "{run}", LOST),
    ("unlinkat", "{run}/.attempts/*", LOST),
]


class Site:
    """A node whose checkpoints are on a disk that may lose its power."""

    def __init__(self, node: Cluster, disk: Disk) -> None:
        self.node, self.disk = node, disk
        self.daemon = node.daemons[0]
        self.sequence = self.step = 0
        self.salt = ""
        """What the image that changes is made with, in the last save."""

    def stage(self, **how: Any) -> str:
        """Stage the step as the next save; return the attempt."""
        self.sequence += 1
        self.salt = f"{self.sequence}-"
        return self.node.stage(self.sequence, self.step, salt=self.salt, plan_hash=self.salt, **how)

    def save(self) -> None:
        """Save another step."""
        self.step += 1
        self.stage()
        self.node.seal()
        assert self.node.outcomes() == ["COMMITTED"]

    def lose_power(self, arena: str = LEFT) -> None:
        """Cut, and switch on again: all processes are dead."""
        self.disk.cut()
        self.switch_on(arena)

    def switch_on(self, arena: str) -> None:
        """End what still runs, and have the disk back."""
        if self.daemon.process is not None:
            self.daemon.kill()
        self.node.end()
        if arena == LOST:
            shutil.rmtree(arena_of(self.daemon.state_dir))
        self.disk.come_back()

    def lose_power_at(self, call: str, where: str, arena: str, attempt: str) -> None:
        """Let the staged attempt go on up to that call."""
        run = self.node.run
        path = where.format(attempt=run / ".attempts" / attempt, run=run)
        with tampered(self.daemon.pid, f"{call}:{KILLS}", on=[] if "*" in where else [Path(path)]):
            self.node.seal()
            self.daemon.wait_killed()
        self.lose_power(arena)

    def check_goes_on(self, attempt: str, arena: str) -> None:
        """What is staged is finished, another save works, and nothing is left behind."""
        self.node.revive()
        if arena == LEFT:
            self.node.watch(attempt=attempt)
            assert self.node.told()[0]["state"] == "COMMITTED"
            assert self.node.is_whole(self.step, self.salt)
        self.save()
        assert self.node.is_whole(self.step, self.salt)
        eventually(lambda: self.node.left() == [])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    place = tmp_path_factory.mktemp("power") / "disk"
    with short_directory() as short, disk(place) as its, cluster(short, place, 1) as node:
        yield Site(node, its)


@pytest.fixture
def site(kept: Site) -> Site:
    """All live, and there is a step."""
    kept.node.revive()
    kept.save()
    return kept


@pytest.mark.parametrize(("call", "where", "arena"), SAVING)
def test_at_whatever_moment_the_power_goes_a_step_is_there_whole_or_not_at_all(
    site: Site, call: str, where: str, arena: str
) -> None:
    before, salt_before = site.step, site.salt
    site.step += 1
    attempt = site.stage()
    site.lose_power_at(call, where, arena, attempt)
    assert site.node.is_whole(before, salt_before)
    assert before + 1 not in site.node.steps() or site.node.is_whole(before + 1, site.salt)
    site.check_goes_on(attempt, arena)


@pytest.mark.parametrize(("call", "where", "arena"), REPLACING)
def test_at_whatever_moment_the_power_goes_a_replaced_step_is_the_old_one_or_the_new(
    site: Site, call: str, where: str, arena: str
) -> None:
    old = site.salt
    attempt = site.stage(replace=True)
    site.lose_power_at(call, where, arena, attempt)
    image = (site.node.run / f"step-{site.step}" / "__0_0.distcp").read_bytes()
    is_old = image == content(f"{old}__0_0.distcp", len(image))
    assert site.node.is_whole(site.step, old if is_old else site.salt)
    site.check_goes_on(attempt, arena)


def test_a_step_whose_commit_was_told_is_there_even_if_the_power_goes_at_once(site: Site) -> None:
    # who moves the links syncs the run's directory as well, and must not be what saves the step
    with tampered(site.daemon.pid, f"symlink,symlinkat:{STALLS}"):
        site.save()
        site.disk.cut()
        os.kill(site.daemon.pid, signal.SIGKILL)  # to be waited for when strace has gone
    site.switch_on(LOST)
    assert site.node.is_whole(site.step, site.salt)


def test_all_that_a_step_consists_of_is_synced_before_it_has_its_name(
    site: Site, tmp_path: Path
) -> None:
    """Whatever the filesystem: what one makes durable with something else, another does not."""
    log = tmp_path / "calls"
    site.step += 1
    attempt = site.stage()
    with recorded(site.daemon.pid, "%file,%desc", log, paths=True):
        site.node.seal()
        assert site.node.outcomes() == ["COMMITTED"]
    directory, step = (
        str(site.node.run / name) for name in (f".attempts/{attempt}", f"step-{site.step}")
    )
    unsynced, made = set[str](), 0
    for line in log.read_text().splitlines():
        call, named, opened = _call(line)
        if call == "rename" and named[-1] == step:
            break
        if call in {"fsync", "fdatasync"}:
            unsynced.discard(opened)
        elif call in {"write", "pwrite64", "ftruncate", "fallocate"}:
            unsynced.add(opened)
        elif call in {"mkdir", "link", "linkat"} or (call == "openat" and "O_CREAT" in line):
            unsynced.add(str(Path(named[-1]).parent))
            made += named[-1].startswith(directory)
    assert made == 1 + 2 * len(site.node.plan) + 1
    assert not {path for path in unsynced if path.startswith(directory)}


def _call(line: str) -> tuple[str, list[str], str]:
    """Return the name of a recorded call, the paths in it, and that of its descriptor."""
    found = re.match(r"\d+ +(\w+)\((?:\d+<([^>]*)>)?", line)
    if found is None:
        return "", [], ""
    return found[1], re.findall(r'"(/[^"]*)"', line), found[2] or ""


class Adapted(nn.Module):
    """A frozen layer and one that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(200, 200).requires_grad_(False)
        self.head = nn.Linear(200, 1, bias=False)

    def filled(self, value: int) -> Adapted:
        with torch.no_grad():
            self.head.weight.fill_(value)
        return self


def test_what_users_have_of_a_run_is_there_after_a_power_cut(
    short_path: Path, tmp_path: Path
) -> None:
    """Steps, frozen parameters, rules and links, as the commands, `load` and people see them."""
    rules = ckptd.Retention(latest=2, best=1, monitor="loss")
    net, found = Adapted(), Adapted()
    with disk(tmp_path / "disk") as its, Daemon(short_path) as daemon:
        run = its.root / "e" / "r"
        with ckptd.Checkpointer(
            its.root, experiment="e", run="r", socket=daemon.socket, retention=rules, ranks="self"
        ) as checkpoints:

            def save(step: int, loss: float) -> None:
                state = {"net": net.filled(step)}
                checkpoints.save(state, step=step, metrics={"loss": loss}).result(30)

            for step, loss in enumerate((0.1, 0.5, 0.4, 0.3)):
                save(step, loss)
            eventually(lambda: _steps(run) == {0, 2, 3})
            its.cut()
            daemon.kill()
            its.come_back()
            daemon.start()
            verified = command("verify", str(run), env=daemon.env)
            assert verified.returncode == 0, verified.stdout + verified.stderr
            assert _steps(run) - {1} == {0, 2, 3}
            assert len({(run / f"step-{n}" / "__0_1.distcp").stat().st_ino for n in (0, 2, 3)}) == 1
            assert checkpoints.load({"net": found}).step == 3
            assert bool((found.head.weight == 3).all())
            assert torch.equal(found.base.weight, net.base.weight)
            save(4, 0.2)
            eventually(lambda: _steps(run) == {0, 3, 4})
            eventually(lambda: (run / "latest").readlink() == Path("step-4"))
            assert (run / "best").readlink() == Path("step-0")


def _steps(run: Path) -> set[int]:
    return {int(path.name.removeprefix("step-")) for path in run.glob("step-*")}
