"""A daemon, or a node, that is about to go away: the newest step is saved first, and all is told."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptd
from ckptd_proto import errors
from fakes.daemon import Daemon
from fakes.running import ckptd as run_ckptd
from fakes.tracing import STALLS, tampered
from fakes.waiting import eventually

pytestmark = pytest.mark.timeout(240)
HOUR = "3600"


class Job:
    """A training of one rank, and the notice of its node."""

    def __init__(self, daemon: Daemon, root: Path, notice: Path) -> None:
        self.daemon, self.root, self.notice = daemon, root, notice
        self.ckpt = ckptd.Checkpointer(
            root, experiment="e", run="r", ranks="self", socket=daemon.socket, timeout=60
        )
        self.ckpt.prepare(self.state(0))  # no save waits for memory
        self.save(0).result(timeout=60)  # notes who saves: the next only write

    @staticmethod
    def state(step: int) -> dict[str, Any]:
        return {"x": torch.full((1000,), float(step))}

    def save(self, step: int) -> ckptd.Save:
        return self.ckpt.save(self.state(step), step=step)

    def give_notice(self, text: str) -> None:
        """As an agent should: whole, by one rename."""
        beside = self.notice.with_suffix(".new")
        beside.write_text(text)
        beside.rename(self.notice)
        eventually(lambda: self.status().preemption)

    def status(self) -> ckptd.DaemonStatus:
        return self.daemon.client().status()

    def fates(self) -> list[tuple[int, str]]:
        found = self.status().preemption
        assert found is not None
        return [(save.step, save.fate) for save in found.saves]

    @contextmanager
    def slow(self) -> Iterator[None]:
        """While inside, no file of an image gets its room on the disk."""
        with tampered(self.daemon.pid, f"fallocate:{STALLS}"):
            yield

    def written(self, step: int) -> None:
        """Return when the daemon has begun to write *step*."""
        directory = self.root / "e" / "r" / ".attempts"
        eventually(lambda: list(directory.glob(f"{step}-*/*.distcp")))

    def committed(self) -> list[int]:
        """The steps there are, in the order they were committed."""
        found = [json.loads(p.read_bytes()) for p in self.root.glob("e/r/step-*/manifest.json")]
        return [each["step"] for each in sorted(found, key=lambda one: one["committed_at"])]


@contextmanager
def training(short_path: Path, root: Path, **settings: object) -> Iterator[Job]:
    notice = short_path / "notice"
    hasty = {"preemption_notice": notice, "preemption_poll_s": 0.05, "slots_per_rank": 3}
    with Daemon(short_path, **{**hasty, **settings}) as daemon:
        job = Job(daemon, root, notice)
        yield job
        job.ckpt.close(timeout=60)


@pytest.fixture
def job(short_path: Path, tmp_path: Path) -> Iterator[Job]:
    with training(short_path, tmp_path / "root") as one:
        yield one


def test_after_a_notice_the_newest_step_is_written_first_even_if_it_comes_later(job: Job) -> None:
    with job.slow():
        saves = [job.save(1), job.save(2)]
        job.written(1)
        job.give_notice(HOUR)
        saves.append(job.save(3))
    assert [save.result(timeout=60).step for save in saves] == [1, 2, 3]
    assert job.committed() == [0, 3, 2, 1]
    assert job.fates() == [(1, "saved"), (2, "saved"), (3, "saved")]
    eventually(lambda: f"{job.root}/e/r: step 1 saved, step 2 saved" in job.daemon.log_text())


def test_an_older_step_for_which_there_is_no_time_gives_way_to_the_newer_that_is_saved(
    job: Job,
) -> None:
    with job.slow():
        saves = [job.save(1), job.save(2)]
        job.written(1)
        job.give_notice(f"{time.time() - 1}")
    assert saves[1].result(timeout=60).step == 2
    eventually(saves[0].done)
    assert saves[0].superseded_by == 2
    job.save(3).result(timeout=60)  # training goes on, and nothing is raised
    assert job.committed() == [0, 2, 3]
    assert job.fates() == [(1, "superseded"), (2, "saved"), (3, "saved")]
    eventually(lambda: not list((job.root / "e/r/.attempts").iterdir()))


def test_the_newest_step_is_written_though_the_time_is_over(job: Job) -> None:
    job.give_notice(f"{time.time() - 1}")
    assert job.save(1).result(timeout=60).step == 1
    eventually(lambda: f"{job.root}/e/r: step 1 saved" in job.daemon.log_text())


def test_ranks_that_watch_and_people_are_told(job: Job) -> None:
    with job.slow():
        save = job.save(1)
        job.give_notice(HOUR)
        eventually(lambda: "this node goes away in 3" in save.note)
        with pytest.raises(errors.DeadlineExceeded, match=r"this node goes away in .* goes on"):
            save.result(timeout=0)
        shown = run_ckptd("status", env=job.daemon.env).stdout
        assert "this node goes away: 59 min " in shown
        assert "staged  step 1 of e/r" in shown
        (told,) = json.loads(run_ckptd("status", "--json", env=job.daemon.env).stdout)[
            "preemption"
        ]["saves"]
        assert (told["step"], told["fate"]) == (1, "staged")


def test_a_notice_that_is_withdrawn_was_none(job: Job) -> None:
    job.give_notice(HOUR)
    assert job.ckpt.preempted() is not None
    job.notice.unlink()
    eventually(lambda: job.status().preemption is None)
    eventually(lambda: job.ckpt.preempted() is None)
    with job.slow():
        saves = [job.save(1), job.save(2)]
        job.written(1)
    assert [save.result(timeout=60).step for save in saves] == [1, 2]
    assert job.committed() == [0, 1, 2]


def test_what_nobody_understands_means_soon(job: Job) -> None:
    job.give_notice("in a while")
    assert "says 'in a while', which is no time" in job.daemon.log_text()
    found = job.status().preemption
    assert found is not None
    assert 0 < found.left_s <= 25


def test_sigterm_has_the_newest_step_saved_first_and_the_others_after_it(job: Job) -> None:
    with job.slow():
        for step in (1, 2, 3):
            job.save(step)
        job.written(1)
        assert job.daemon.process is not None
        job.daemon.process.terminate()
        eventually(lambda: job.status().stopping)
    assert job.daemon.process.wait(60) == 0
    assert job.committed() == [0, 3, 2, 1]
    assert f"{job.root}/e/r: step 1 saved, step 2 saved, step 3 saved" in job.daemon.log_text()
    job.daemon.stop()
    job.daemon.start()


def test_what_sigterm_leaves_is_told_to_its_ranks_and_saved_by_the_next_start(
    short_path: Path, tmp_path: Path
) -> None:
    with training(short_path, tmp_path / "root", drain_s=0.1) as job:
        with job.slow():
            saves = [job.save(1), job.save(2)]
            job.written(1)
            assert job.daemon.process is not None
            job.daemon.process.terminate()
            eventually(lambda: "the daemon was stopped before step 2" in saves[1].note)
            job.daemon.process.kill()  # as the machine does: it must not go on once it may write
        job.daemon.kill()
        said = job.daemon.log_text()
        assert f"{job.root}/e/r: step 1 staged (the next start finishes it" in said
        job.daemon.start()
        assert [save.result(timeout=60).step for save in saves] == [1, 2]
