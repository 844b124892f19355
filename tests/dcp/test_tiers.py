"""Where `StorageReader` reads: in the node's memory, past the page cache, or by way of it."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.planner import LoadPlan

import ckptd
from ckptd.dcp import sharing
from ckptd.link import connection
from fakes import ranks
from fakes.daemon import Daemon, arena_of
from fakes.waiting import eventually

LOADING = Path(__file__).parent / "programs" / "loading.py"
SIZE = 3 << 20  # floats: four chunks of an image

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def step(daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A step that the daemon has in memory."""
    monkeypatch.setenv("CKPTD_SOCKET", str(daemon.socket))
    path = tmp_path / "root" / "e" / "r" / "step-1"
    state = {"w": torch.full((SIZE,), 3.0), "note": {"n": 1}}
    dcp.save(state, storage_writer=ckptd.dcp.StorageWriter(path))
    yield path


def loaded(path: Path, **options: Any) -> bool:
    """Load it; say whether it is what was saved."""
    found = {"w": torch.zeros(SIZE), "note": {"n": 0}}
    dcp.load(found, storage_reader=ckptd.dcp.StorageReader(path, **options))
    return bool((found["w"] == 3).all()) and found["note"] == {"n": 1}


def lose_images(path: Path) -> None:
    for image in (*path.glob("*.distcp"), path / "index.json"):
        image.unlink()


def test_what_lies_in_memory_is_not_read_from_disk(step: Path) -> None:
    lose_images(step)
    assert loaded(step)


def test_the_daemon_may_be_named(
    daemon: Daemon, step: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKPTD_SOCKET", str(step / "nobody"))
    lose_images(step)
    assert loaded(step, socket=daemon.socket)


def test_memory_that_is_not_what_was_saved_is_quarantined_and_the_file_is_read(
    daemon: Daemon, step: Path
) -> None:
    for slot in arena_of(daemon.state_dir).glob("*.slot"):
        slot.chmod(0o600)
        with slot.open("r+b") as file:
            file.seek(1 << 20)
            file.write(b"x" * (slot.stat().st_size - (1 << 20)))
    assert loaded(step)
    eventually(lambda: "corrupt in memory" in daemon.log_text())


def test_memory_is_the_daemons_again_when_it_has_been_read(daemon: Daemon, step: Path) -> None:
    assert loaded(step)
    for number in (2, 3, 4, 5):  # two slots serve them all
        state = {"w": torch.full((SIZE,), 3.0), "note": {"n": 1}}
        writer = ckptd.dcp.StorageWriter(step.with_name(f"step-{number}"))
        dcp.save(state, storage_writer=writer)
    assert len(list(arena_of(daemon.state_dir).glob("*.slot"))) <= 2


def test_a_daemon_that_is_gone_is_not_waited_for(daemon: Daemon, step: Path) -> None:
    assert loaded(step)
    daemon.kill()
    started = time.monotonic()
    assert loaded(step)
    assert time.monotonic() - started < 10


def test_a_daemon_that_does_not_answer_is_not_waited_for(
    daemon: Daemon, step: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loaded(step)
    monkeypatch.setattr(connection, "HELLO_S", 0.5)
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        assert loaded(step)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def test_what_two_ranks_want_is_read_once_and_what_one_wants_past_the_page_cache(
    daemon: Daemon, tmp_path: Path
) -> None:
    size = 32 << 20
    path = tmp_path / "root" / "e" / "r" / "step-1"
    started = ranks.start(LOADING, path, size, ranks=2, env=daemon.env)
    said = [text.splitlines()[-1].split() for text in ranks.outputs(started)]
    assert [words[0] for words in said] == ["True", "True"]
    read_bytes = sum(int(words[3]) for words in said)
    if read_bytes == 0:
        pytest.skip("needs a disk below the temporary directory")
    assert [words[1:3] for words in said] == [["True", "False"]] * 2
    assert 3 * size <= read_bytes < 1.25 * 3 * size


def plans(*told: Any) -> list[LoadPlan]:
    return [LoadPlan([], storage_data=each) for each in told]


def test_ranks_hear_what_others_of_their_node_want_too() -> None:
    agreed = sharing.agreed(
        plans(
            {"node": "a", "chunks": {"f": "7"}},
            {"node": "b", "chunks": {"f": "7"}},
            {"node": "a", "chunks": {"f": "c", "g": "1"}},
        )
    )
    assert [sharing.heard(plan) for plan in agreed] == [
        ({"f": 4}, (0, 2)),
        ({}, (0, 1)),
        ({"f": 4}, (1, 2)),
    ]


def test_plans_that_a_planner_made_anew_stay_as_they_are() -> None:
    some = plans({"node": "a", "chunks": {}}, None)
    assert sharing.agreed(some) == some
    assert sharing.heard(dataclasses.replace(some[1])) == ({}, (0, 1))
