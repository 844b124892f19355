"""`ckptd ls` tells what is committed, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.daemon import Daemon
from fakes.rank import Rank
from fakes.running import ckptd


@pytest.fixture
def saved(daemon: Daemon, tmp_path: Path) -> Path:
    """A root with steps 9 and 10, 13 of a later ckptd, an attempt under way, and things of others."""
    with Rank(daemon.socket, tmp_path, 0, 1) as rank:
        rank.ask("join")
        for sequence, step in enumerate((10, 9, 11)):
            rank.ask("open", sequence=sequence, step=step)
            rank.ask("reserve", images=[("a", 10 + step)])
            if step != 11:
                rank.ask("seal", plan=[("a", 10 + step)], metrics={"loss": float("nan")})
                rank.ask("watch")
    run = tmp_path / "e" / "r"
    (run / "step-12").mkdir()
    (run / "step-13").mkdir()
    (run / "step-13" / "manifest.json").write_text('{"format": 2}')
    (run / "step-14").mkdir()
    (run / "step-14" / "manifest.json").write_bytes((run / "step-9" / "manifest.json").read_bytes())
    (run / "notes.txt").write_text("mine")
    return tmp_path


def listed(daemon: Daemon, *arguments: str | Path) -> str:
    command = [sys.executable, "-m", "ckptd.cli", "ls", *map(str, arguments)]
    return subprocess.run(
        command, env=daemon.env, capture_output=True, text=True, check=True
    ).stdout


def test_committed_steps_are_listed_by_rising_step(daemon: Daemon, saved: Path) -> None:
    found = [json.loads(line) for line in listed(daemon, saved, "--json").splitlines()]
    steps = [(each["step"], each["size_bytes"]) for each in found]
    assert steps == [(9, 19), (10, 20), (13, len('{"format": 2}'))]
    assert found[0]["path"] == str(saved / "e" / "r" / "step-9")
    assert found[0]["metrics"] == {"loss": "nan"}
    assert [each["corrupt"] for each in found[:2]] == [None, None]
    assert "step-14 is not listed: is that of step 9" in daemon.log_text()


def test_a_person_reads_one_line_per_step(daemon: Daemon, saved: Path) -> None:
    lines = listed(daemon, saved, "--experiment", "e", "--run", "r").splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["e/r", "step 9"],
        ["e/r", "step 10"],
        ["e/r", "step 13"],
    ]
    assert "NEWER: manifest.json is written in format 2" in lines[-1]


def test_an_unknown_run_has_none(daemon: Daemon, saved: Path) -> None:
    assert listed(daemon, saved, "--run", "other") == ""


def test_a_root_that_is_not_there_is_not_found(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in ("nowhere", "file"):
        done = ckptd("ls", str(tmp_path / root), "--json", env=daemon.env)
        told = json.loads(done.stderr)
        assert (done.returncode, done.stdout, told["error"]) == (3, "", "NotFound")
        assert str(tmp_path / root) in told["message"]
