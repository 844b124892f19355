"""What does not change from step to step is on the disk once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

import ckptd
from fakes.daemon import Daemon
from fakes.tracing import KILLS, tampered

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

STILL = "__0_1.distcp"


class Adapted(nn.Module):
    """A frozen layer and a small one that learns, as in LoRA."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(1500, 1500).requires_grad_(False)
        self.down = nn.Linear(1500, 2, bias=False)
        self.up = nn.Linear(2, 1500, bias=False)


class Job:
    """One that trains adapters."""

    def __init__(self, daemon: Daemon, root: Path) -> None:
        torch.manual_seed(0)
        self.net = Adapted()
        self.socket = daemon.socket
        self.run = root / "e" / "r"
        self.ckpt = ckptd.Checkpointer(root, experiment="e", run="r", socket=daemon.socket)

    def save(self, step: int) -> Path:
        with torch.no_grad():
            self.net.up.weight.fill_(step)
        return self.ckpt.save({"net": self.net}, step=step).result(60).path

    def inode(self, step: int) -> int:
        return (self.run / f"step-{step}" / STILL).stat().st_ino

    def check(self, step: int) -> None:
        """Raise unless stock torch and ckptd load the step as it was saved."""
        path = self.run / f"step-{step}"
        for options in (
            {"checkpoint_id": path},
            {"storage_reader": ckptd.dcp.StorageReader(path)},
        ):
            found = {
                "net": {name: torch.zeros_like(v) for name, v in self.net.state_dict().items()}
            }
            dcp.load(found, **options)
            assert bool((found["net"]["up.weight"] == step).all())
            assert torch.equal(found["net"]["base.weight"], self.net.base.weight)


@pytest.fixture
def job(daemon: Daemon, tmp_path: Path) -> Iterator[Job]:
    one = Job(daemon, tmp_path)
    with one.ckpt:
        yield one


def test_frozen_parameters_are_on_the_disk_once_and_outlive_the_step_that_wrote_them(
    job: Job,
) -> None:
    for step in (1, 2, 3):
        job.save(step)
        job.check(step)
    assert job.inode(1) == job.inode(2) == job.inode(3)
    changing = sum(
        path.stat().st_size for path in (job.run / "step-3").iterdir() if path.name != STILL
    )
    assert changing < 50_000 < (job.run / "step-3" / STILL).stat().st_size
    shutil.rmtree(job.run / "step-1")
    shutil.rmtree(job.run / "step-2")
    job.check(3)


def test_what_was_frozen_and_has_changed_is_written_anew(job: Job) -> None:
    job.save(1)
    with torch.no_grad():
        job.net.base.weight[700, 3] += 1
    job.save(2)
    assert job.inode(1) != job.inode(2)
    job.check(2)


def test_one_element_that_was_changed_where_nothing_counts_it_is_saved(job: Job) -> None:
    for step in range(1, 5):
        job.net.base.weight.data[701, 5] += 1
        job.save(step)
        job.check(step)


def test_a_damaged_file_is_not_what_was_saved_and_is_not_linked(job: Job) -> None:
    path = job.save(1) / STILL
    with path.open("r+b") as file:
        file.seek(5 << 20)
        byte = file.read(1)[0]
        file.seek(5 << 20)
        file.write(bytes([byte ^ 1]))
    job.save(2)
    assert job.inode(1) != job.inode(2)
    job.check(2)


@pytest.mark.parametrize("code", ["EMLINK", "ENOSPC"])
def test_where_there_can_be_no_link_it_is_written(job: Job, daemon: Daemon, code: str) -> None:
    job.save(1)
    with tampered(daemon.pid, f"linkat,link:error={code}"):
        job.save(2)
    assert job.inode(1) != job.inode(2)
    job.check(2)
    job.save(3)
    assert job.inode(2) == job.inode(3)


def test_a_daemon_that_dies_while_it_links_finishes_in_its_next_life(
    job: Job, daemon: Daemon
) -> None:
    job.save(1)
    with tampered(daemon.pid, f"linkat,link:{KILLS}"):
        save = job.ckpt.save({"net": job.net}, step=2)
        assert daemon.process is not None
        daemon.process.wait(30)
    daemon.kill()
    daemon.start()
    assert save.result(60).step == 2
    assert job.inode(1) == job.inode(2)
    found: dict[str, Any] = {"net": {"base.weight": torch.zeros(1500, 1500)}}
    dcp.load(found, checkpoint_id=job.run / "step-2")
    assert torch.equal(found["net"]["base.weight"], job.net.base.weight)


def test_torchs_own_calls_are_told_what_is_frozen(job: Job) -> None:
    frozen = [each for each in job.net.parameters() if not each.requires_grad]
    job.ckpt.close()
    for step in (1, 2):
        with torch.no_grad():
            job.net.up.weight.fill_(step)
        path = job.run / f"step-{step}"
        writer = ckptd.dcp.StorageWriter(path, frozen=frozen, socket=job.socket)
        dcp.save({"net": job.net}, storage_writer=writer)
        job.check(step)
    assert job.inode(1) == job.inode(2)
