"""A committed step whose manifest is damaged, or of a later ckptd: seen, never taken, and what may be done to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptd
from ckptd_proto import errors
from fakes.daemon import Daemon
from fakes.jobs import job
from fakes.running import ckptd as run_ckptd
from fakes.waiting import eventually

MANIFEST = "manifest.json"
DAMAGES = {"empty": "is empty", "rotten": "is damaged (", "of nobody": "is damaged ("}


def save(ckpt: ckptd.Checkpointer, step: int, value: float | None = None, **how: Any) -> str:
    value = float(step) if value is None else value
    return ckpt.save({"w": torch.full((9,), value)}, step=step, **how).result(60).uuid


def load(ckpt: ckptd.Checkpointer, which: str | int = "latest", **how: Any) -> tuple[int, float]:
    state = {"w": torch.zeros(9)}
    return ckpt.load(state, which, **how).step, float(state["w"][0])


def damage(path: Path, how: str = "rotten") -> None:
    data = (path / MANIFEST).read_bytes()
    rotten = data.replace(b'"plan_hash"', b'"plan_ha\xf3h"')
    damaged = {"empty": b"", "rotten": rotten, "of nobody": b'{"format": 1, "images": {}}'}[how]
    (path / MANIFEST).write_bytes(damaged)


def of_a_later_ckptd(path: Path) -> bytes:
    """Have the step be one of format 2; return its manifest."""
    raw = json.loads((path / MANIFEST).read_bytes())
    data = json.dumps(raw | {"format": 2, "images": []}).encode()
    (path / MANIFEST).write_bytes(data)
    return data


def run(daemon: Daemon, *arguments: str | Path) -> tuple[int, list[dict[str, Any]]]:
    done = run_ckptd(*map(str, arguments), "--json", env=daemon.env)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def step(daemon: Daemon, tmp_path: Path) -> Path:
    """Step 2 of e/r, after step 1; both are sound."""
    with job(daemon, tmp_path) as ckpt:
        save(ckpt, 1)
        save(ckpt, 2)
    return tmp_path / "e/r/step-2"


@pytest.mark.parametrize("how", DAMAGES)
def test_it_is_listed_as_corrupt_and_no_job_begins_with_it(
    daemon: Daemon, tmp_path: Path, step: Path, how: str
) -> None:
    damage(step, how)
    _, told = run(daemon, "ls", tmp_path)
    assert [(one["step"], one["latest"]) for one in told] == [(1, True), (2, False)]
    assert told[0]["corrupt"] is None
    assert told[1]["corrupt"]["file"] == MANIFEST
    assert told[1]["corrupt"]["what"].startswith(DAMAGES[how])
    assert told[1]["size_bytes"] > 0
    with job(daemon, tmp_path) as ckpt:
        assert load(ckpt) == (1, 1.0)
        with pytest.raises(errors.DataLoss, match=MANIFEST):
            load(ckpt, 2)
        assert load(ckpt, 2, on_corrupt="previous") == (1, 1.0)


def test_if_there_is_no_other_nobody_begins_anew_by_mistake(
    daemon: Daemon, tmp_path: Path, step: Path
) -> None:
    damage(step)
    damage(step.with_name("step-1"))
    assert not any(one["latest"] for one in run(daemon, "ls", tmp_path)[1])
    with job(daemon, tmp_path) as ckpt, pytest.raises(errors.DataLoss, match="every committed"):
        ckpt.latest()


def test_it_is_removed_only_by_who_asks_for_that(
    daemon: Daemon, tmp_path: Path, step: Path
) -> None:
    damage(step)
    run(daemon, "pin", step)
    assert run(daemon, "rm", step)[0] == 4
    run(daemon, "unpin", step)
    code, told = run(daemon, "rm", step)
    assert (code, told[0]["step"], told[0]["removed"]) == (0, 2, True)
    assert not step.exists()
    with job(daemon, tmp_path) as ckpt:
        save(ckpt, 2)


def test_a_save_of_its_step_replaces_it(daemon: Daemon, tmp_path: Path, step: Path) -> None:
    damage(step, "empty")
    with job(daemon, tmp_path) as ckpt:
        save(ckpt, 2, 22.0)
        assert load(ckpt) == (2, 22.0)
        damage(step)
        save(ckpt, 2, 23.0)  # of the same life
        assert load(ckpt) == (2, 23.0)
        with pytest.raises(errors.AlreadyExists), job(daemon, tmp_path) as third:
            save(third, 2)
    assert not list(step.parent.glob(".attempts/*"))


def test_no_rule_removes_it_nor_counts_it(daemon: Daemon, tmp_path: Path, step: Path) -> None:
    damage(step)
    run_directory = step.parent
    with job(daemon, tmp_path, ckptd.Retention(latest=2)) as ckpt:
        for number in (3, 4, 5):
            save(ckpt, number)
        eventually(lambda: not run_directory.joinpath("step-3").exists())
    left = sorted(path.name for path in run_directory.glob("step-*"))
    assert left == ["step-2", "step-4", "step-5"]
    assert run_directory.joinpath("latest").readlink() == Path("step-5")
    _, rulings = run(daemon, "gc", tmp_path, "--latest", "1", "--dry-run")
    assert [one["goes"] for one in rulings] == [False, True, False]
    assert "its manifest is damaged" in rulings[0]["why"]


def test_verify_names_it_and_mends_it_from_a_copy(
    daemon: Daemon, tmp_path: Path, step: Path
) -> None:
    copy = shutil.copytree(step, tmp_path / "copy" / "step-2")
    damage(step, "empty")
    code, told = run(daemon, "verify", tmp_path / "e")
    assert (code, told[1]["faults"][0]["file"]) == (5, MANIFEST)
    assert run_ckptd("show", str(step), env=daemon.env).returncode == 5
    code, told = run(daemon, "verify", step, "--repair", "--from", copy)
    assert (code, told[0]["mended"]) == (0, [MANIFEST])
    with job(daemon, tmp_path) as ckpt:
        assert load(ckpt) == (2, 2.0)


def test_what_a_later_ckptd_wrote_is_said_to_be_that_and_stays_as_it_is(
    daemon: Daemon, tmp_path: Path, step: Path
) -> None:
    data = of_a_later_ckptd(step)
    _, told = run(daemon, "ls", tmp_path)
    assert told[1]["corrupt"]["is_newer"]
    listed = run_ckptd("ls", str(tmp_path), env=daemon.env).stdout
    assert f"NEWER: {MANIFEST} is written in format 2, and this ckptd knows 1" in listed
    assert "CORRUPT" not in listed
    done = run_ckptd("verify", str(tmp_path), "--repair", env=daemon.env)
    assert "format 2" in done.stderr
    assert str(step.with_name("step-1")) in done.stdout
    assert run_ckptd("rm", str(step), env=daemon.env).returncode != 0
    with job(daemon, tmp_path, ckptd.Retention(latest=1)) as ckpt:
        assert load(ckpt) == (1, 1.0)
        for how in ({}, {"on_existing": "replace"}):
            with pytest.raises(errors.Unimplemented, match="format 2"):
                save(ckpt, 2, **how)
        save(ckpt, 3)
        eventually(lambda: not step.with_name("step-1").exists())
    assert (step / MANIFEST).read_bytes() == data
    run(daemon, "rm", step.with_name("step-3"), "--force")
    with job(daemon, tmp_path) as ckpt, pytest.raises(errors.Unimplemented, match="format 2"):
        ckpt.latest()


def test_a_copy_of_another_step_is_neither_listed_nor_replaced(
    daemon: Daemon, tmp_path: Path, step: Path
) -> None:
    kept = shutil.copytree(step, step.with_name("step-9"))
    assert [one["step"] for one in run(daemon, "ls", tmp_path)[1]] == [1, 2]
    assert "step-9 is not listed: is that of step 2" in daemon.log_text()
    with (
        job(daemon, tmp_path) as ckpt,
        pytest.raises(errors.AlreadyExists, match="is that of step 2"),
    ):
        save(ckpt, 9)
    assert (kept / MANIFEST).read_bytes() == (step / MANIFEST).read_bytes()
