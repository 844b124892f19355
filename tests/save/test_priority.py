"""What a save costs others: its writers come after everybody else, for the CPU and for the disk."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from fakes.daemon import Daemon
from fakes.rank import Rank
from fakes.tracing import tampered
from fakes.waiting import eventually

IMAGES = [(f"__0_{number}.distcp", 1 << 20) for number in range(32)]
THREADS = 2
NICE = 10  # of which the kernel derives the priority for the disk, where none is set


def niceness(daemon: Daemon) -> Counter[int]:
    """Return how many threads of the daemon have which nice value."""
    stats = (path.read_text() for path in Path(f"/proc/{daemon.pid}/task").glob("*/stat"))
    return Counter(int(stat.rpartition(")")[2].split()[16]) for stat in stats)


def is_writing(daemon: Daemon) -> bool:
    """Say whether some images are written, and others not yet."""
    return any(0 < save.done_bytes < save.total_bytes for save in daemon.client().status().attempts)


@pytest.mark.parametrize(("own", "meanwhile"), [(0, {0, NICE}), (15, {15})])
def test_those_who_write_a_save_give_way_to_all_others_and_go_before_nobody(
    short_path: Path, tmp_path: Path, own: int, meanwhile: set[int]
) -> None:
    with (
        Daemon(short_path, persist_threads=THREADS) as daemon,
        Rank(daemon.socket, tmp_path, 0, 1) as rank,
    ):
        for thread in Path(f"/proc/{daemon.pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), own)
        rank.ask("join")
        rank.ask("open", sequence=0, step=7)
        rank.ask("reserve", images=IMAGES)
        rank.ask("copy")
        with tampered(daemon.pid, "pwrite64:delay_enter=500000"):
            rank.ask("seal", plan=IMAGES)
            eventually(lambda: is_writing(daemon))
            found = niceness(daemon)
        assert found.keys() == meanwhile
        assert found[NICE] == (THREADS if NICE in meanwhile else 0)
        assert rank.ask("watch")["state"] == "COMMITTED"
        eventually(lambda: niceness(daemon).keys() == {own})
