"""Saves by the thousand leave nothing in memory, neither in the trainer nor in the daemon."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

import ckptd
from fakes.daemon import Daemon, arena_of
from fakes.waiting import eventually

SAVES = int(os.environ.get("CKPTD_TEST_SAVES", "1000"))
SETTLED = 300  # until the daemon has as many outcomes in mind as it will ever have
GROWTH_MAX_BYTES = 6 << 20  # of allocators; what leaked 10 KB a save would be more

pytestmark = pytest.mark.timeout(60 + SAVES // 2)


def anon_bytes(pid: int) -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def held(daemon: Daemon) -> tuple[int, int, int]:
    """The descriptors of this process and of the daemon, and the segments of shared memory."""
    mine, its = (len(os.listdir(f"/proc/{pid}/fd")) for pid in (os.getpid(), daemon.pid))  # noqa: PTH208
    return mine, its, len(list(arena_of(daemon.state_dir).glob("*.slot")))


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
    assert not list((tmp_path / "e" / "r" / ".attempts").iterdir())
