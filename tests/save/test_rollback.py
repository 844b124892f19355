"""A job that goes back to an earlier step goes on from there: what it saves stays, and is the latest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ckptd
from fakes.daemon import Daemon
from fakes.jobs import job
from fakes.rank import Rank
from fakes.running import ckptd as run_ckptd
from fakes.waiting import eventually

RULES = ckptd.Retention(latest=3)


def save(ckpt: ckptd.Checkpointer, root: Path, *steps: int) -> None:
    """Save the steps; return when the rules were applied to the last."""
    latest = root / "e/r/latest"
    for step in steps:
        path = ckpt.save({"x": torch.full((8,), float(step))}, step=step).result(timeout=60).path
        eventually(lambda: latest.exists() and latest.samefile(path))  # noqa: B023
        eventually(lambda: len(there(root)) <= RULES.latest)


def there(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (root / "e/r").glob("step-*"))


def test_what_a_job_commits_after_it_went_back_stays(daemon: Daemon, tmp_path: Path) -> None:
    with job(daemon, tmp_path, RULES) as ckpt:
        save(ckpt, tmp_path, 400, 490, 500)
    with job(daemon, tmp_path, RULES) as ckpt:
        ckpt.load({"x": torch.zeros(8)}, 400)
        save(ckpt, tmp_path, 410)
        assert there(tmp_path) == [410, 490, 500]
        save(ckpt, tmp_path, 420, 430)
        assert there(tmp_path) == [410, 420, 430]


def test_the_same_holds_for_a_job_that_goes_back_while_it_lives(
    daemon: Daemon, tmp_path: Path
) -> None:
    with job(daemon, tmp_path, RULES) as ckpt:
        save(ckpt, tmp_path, 480, 490, 500, 410, 420)
        assert there(tmp_path) == [410, 420, 500]


def test_the_next_life_goes_on_from_what_was_saved_last_after_a_restart_of_the_daemon_too(
    daemon: Daemon, tmp_path: Path
) -> None:
    with job(daemon, tmp_path, RULES) as ckpt:
        save(ckpt, tmp_path, 400, 500)
    with job(daemon, tmp_path, RULES) as ckpt:
        ckpt.load({"x": torch.zeros(8)}, 400)
        save(ckpt, tmp_path, 410)
    daemon.kill()
    daemon.start()
    with job(daemon, tmp_path, RULES) as ckpt:
        latest = ckpt.latest()
        assert latest is not None
        assert (latest.step, ckpt.load({"x": torch.zeros(8)}).step) == (410, 410)
        listed = run_ckptd("ls", str(tmp_path), "--json", env=daemon.env).stdout.splitlines()
        told = [json.loads(line) for line in listed]
        assert [(each["step"], each["latest"]) for each in told] == [
            (400, False),
            (410, True),
            (500, False),
        ]


@pytest.mark.parametrize(("step", "code"), [(500, 0), (410, 4)])
def test_the_step_a_job_goes_on_from_is_not_removed_without_force_and_the_highest_is(
    daemon: Daemon, tmp_path: Path, step: int, code: int
) -> None:
    with job(daemon, tmp_path, RULES) as ckpt:
        save(ckpt, tmp_path, 500, 410)
    done = run_ckptd("rm", str(tmp_path / f"e/r/step-{step}"), env=daemon.env)
    assert done.returncode == code, done.stderr


def test_ranks_that_a_script_starts_again_go_on_though_they_count_their_saves_anew(
    daemon: Daemon, tmp_path: Path
) -> None:
    for steps in ((490, 500, 510), (410,)):
        with Rank(daemon.socket, tmp_path, 0, 1) as rank:  # of the same life, for all it knows
            rank.ask("join")
            for sequence, step in enumerate(steps):
                rank.ask("open", sequence=sequence, step=step)
                rank.ask("reserve", images=[("a", 10)])
                rank.ask("seal", plan=[("a", 10)])
                rank.ask("watch")
    latest = tmp_path / "e/r/latest"
    eventually(lambda: latest.is_symlink() and latest.readlink() == Path("step-410"))
