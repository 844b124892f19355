"""`ckptd status` tells how far a save is while it is being written: what is done, how fast, how long yet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd.values import AttemptStatus
from fakes.daemon import Daemon
from fakes.rank import Rank
from fakes.running import ckptd
from fakes.tracing import tampered
from fakes.waiting import eventually

SIZE = 1 << 20
IMAGES = [(f"__0_{number}.distcp", SIZE) for number in range(64)]
TOTAL = SIZE * len(IMAGES)
WRITE_S = 0.5
"""How long the disk takes for each image, of which there is one at a time."""


@pytest.fixture
def daemon(short_path: Path) -> Iterator[Daemon]:
    with Daemon(short_path, persist_threads=1) as one:
        yield one


def moving(daemon: Daemon, done_bytes: int) -> AttemptStatus | None:
    """Return what the daemon says of its save once more than *done_bytes* of it are written."""
    (save,) = daemon.client().status().attempts
    return save if save.done_bytes > done_bytes and save.rate_bytes_per_s else None


def check_figures(save: AttemptStatus) -> None:
    """They are those of this save, and of one disk that takes an image every so often."""
    assert (save.step, save.state, save.total_bytes) == (7, "staged", TOTAL)
    assert 0 < save.done_bytes < TOTAL
    assert save.done_bytes % SIZE == 0
    assert 0 < save.rate_bytes_per_s < 2 * SIZE / WRITE_S
    assert save.eta_s == pytest.approx((TOTAL - save.done_bytes) / save.rate_bytes_per_s)


def test_the_figures_of_a_save_grow_while_it_is_written_until_it_is_committed(
    daemon: Daemon, tmp_path: Path
) -> None:
    with Rank(daemon.socket, tmp_path, 0, 1) as rank:
        rank.ask("join")
        rank.ask("open", sequence=0, step=7)
        rank.ask("reserve", images=IMAGES)
        rank.ask("copy")
        with tampered(daemon.pid, f"pwrite64:delay_enter={WRITE_S * 1e6:.0f}"):
            rank.ask("seal", plan=IMAGES)
            first = eventually(lambda: moving(daemon, 0))
            second = eventually(lambda: moving(daemon, first.done_bytes))
            shown = ckptd("status", env=daemon.env).stdout
            told = json.loads(ckptd("status", "--json", env=daemon.env).stdout)["attempts"]
        assert rank.ask("watch")["state"] == "COMMITTED"
    (third,) = (AttemptStatus(**one) for one in told)
    for save in (first, second, third):
        check_figures(save)
    assert first.done_bytes < second.done_bytes <= third.done_bytes
    assert re.search(
        r"staged +\d+\.\d MB of 67\.1 MB +\d+% +\d+\.\d MB/s +\d+ s left +step 7 of e/r", shown
    )
    ended = daemon.client().status()
    assert ended.attempts == ()
    assert [run.step for run in ended.runs] == [7]
