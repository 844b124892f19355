"""Saves by the thousand leave nothing in memory, neither in the trainer nor in the daemon."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import ckptd
from fakes import ranks
from fakes.daemon import Daemon, arena_of
from fakes.usage import anon_bytes, descriptors
from fakes.waiting import eventually

SAVES = int(os.environ.get("CKPTD_TEST_SAVES", "1000"))
LASTING = Path(__file__).parent / "programs" / "lasting.py"
SETTLED = 300  # until the daemon has as many outcomes in mind as it will ever have
GROWTH_MAX_BYTES = 6 << 20  # of allocators; what leaked 10 KB a save would be more

pytestmark = pytest.mark.timeout(180 + SAVES // 2)


def held(daemon: Daemon) -> tuple[int, int, int]:
    """The descriptors of this process and of the daemon, and the segments of shared memory."""
    return descriptors(os.getpid()), descriptors(daemon.pid), len(slots(daemon))


def slots(daemon: Daemon) -> list[Path]:
    return list(arena_of(daemon.state_dir).glob("*.slot"))


def test_saves_by_the_thousand_do_not_grow_trainer_or_daemon(
    daemon: Daemon, tmp_path: Path
) -> None:
    state = {"w": torch.zeros(1000), "note": "x"}
    pids = os.getpid(), daemon.pid
    before_bytes, before = [0, 0], (0, 0, 0)
    place = {"experiment": "e", "run": "r", "socket": daemon.socket}
    with ckptd.Checkpointer(tmp_path, **place, ranks="self") as checkpoints:
        for step in range(SAVES):
            save = checkpoints.save(state, step=1, on_existing="replace")
            if step % 50 == 49:
                save.result(timeout=60)
            if step == SETTLED:
                save.result(timeout=60)
                before_bytes, before = [anon_bytes(pid) for pid in pids], held(daemon)
        save.result(timeout=60)
        grown = [anon_bytes(pid) - was for pid, was in zip(pids, before_bytes, strict=True)]
        eventually(lambda: all(now <= was for now, was in zip(held(daemon), before, strict=True)))
    assert max(grown) < GROWTH_MAX_BYTES, grown
    assert [path.name for path in (tmp_path / "e" / "r").glob("step-*")] == ["step-1"]
    eventually(lambda: not list((tmp_path / "e" / "r" / ".attempts").iterdir()))


def test_ranks_that_save_all_day_by_rules_hold_what_they_held_after_a_few_saves(
    daemon: Daemon, tmp_path: Path
) -> None:
    started = ranks.start(LASTING, tmp_path, daemon.pid, 200, 60, ranks=2, env=daemon.env)
    for said in ranks.outputs(started):
        before, after = json.loads(said.splitlines()[-1])
        for was, now in zip(before, after, strict=True):  # of the rank, and of the daemon
            assert now["anon"] - was["anon"] < GROWTH_MAX_BYTES, said
            assert now["descriptors"] <= was["descriptors"] + 2, said
            assert now["descriptors"] < 100, "none for each of 122 tensors"
    run = tmp_path / "e" / "r"
    kept = {run / f"step-{step}" for step in (197, 198, 199)}
    eventually(lambda: set(run.glob("step-*")) == kept and not list((run / ".attempts").iterdir()))
    files = [{path.name for path in step.iterdir()} for step in kept]
    assert files[0] == files[1] == files[2]
    assert len({(step / name).stat().st_ino for step in kept for name in files[0]}) < 3 * len(
        files[0]
    ), "what is frozen is there once"
    assert len(slots(daemon)) <= 2 * 2, "two of each rank"
