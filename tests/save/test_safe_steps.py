"""How much of a run's work is safe is told from the first rank on, whatever became of its saves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptd
from fakes.daemon import Daemon
from fakes.running import ckptd as run_ckptd

Open = Callable[..., ckptd.Checkpointer]


@pytest.fixture
def open_run(daemon: Daemon, tmp_path: Path) -> Iterator[Open]:
    """Opens a run of the experiment e."""
    opened: list[ckptd.Checkpointer] = []

    def open_it(run: str = "r", **options: Any) -> ckptd.Checkpointer:
        opened.append(
            ckptd.Checkpointer(tmp_path, experiment="e", run=run, socket=daemon.socket, **options)
        )
        return opened[-1]

    yield open_it
    for each in opened:
        each.close()


def told(daemon: Daemon) -> dict[str, int | None]:
    done = run_ckptd("status", "--json", env=daemon.env)
    return {run["run"]: run["step"] for run in json.loads(done.stdout)["runs"]}


def test_a_run_that_is_joined_to_be_saved_is_told_before_it_has_a_step(
    daemon: Daemon, open_run: Open
) -> None:
    open_run("reader", read_only=True)
    ckpt = open_run()
    assert told(daemon) == {"r": None}
    assert "e/r  none yet" in run_ckptd("status", env=daemon.env).stdout
    ckpt.save({"x": torch.zeros(8)}, step=3).result(60)
    assert told(daemon) == {"r": 3}


def test_a_daemon_that_was_restarted_tells_what_was_saved_before(
    daemon: Daemon, open_run: Open
) -> None:
    with open_run() as ckpt:
        for step in (7, 5):
            found = ckpt.save({"x": torch.zeros(8)}, step=step).result(60)
    daemon.kill()
    daemon.start()
    assert told(daemon) == {}
    open_run()
    (run,) = daemon.client().status().runs
    assert (run.step, run.committed_at) == (5, found.committed_at)
