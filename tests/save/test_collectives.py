"""What happens to a save behind the training asks nothing of the training's process groups."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fakes import ranks
from fakes.daemon import Daemon
from fakes.tracing import STALLS, tampered
from fakes.waiting import eventually

PROGRAM = Path(__file__).parent / "programs" / "listening.py"


def staged(daemon: Daemon) -> list[int]:
    """Return the steps that are out of the ranks' hands, and are not committed."""
    saves = daemon.client().status().attempts
    return [save.step for save in saves if save.state == "staged"]


@pytest.mark.parametrize("how", ["save", "async_save"])
def test_from_the_return_of_the_call_to_the_commit_no_rank_begins_a_collective(
    daemon: Daemon, tmp_path: Path, how: str
) -> None:
    root, notes = tmp_path / "root", tmp_path / "notes"
    notes.mkdir()
    started = ranks.start(PROGRAM, how, root, notes, ranks=2, env=daemon.env)

    def told(word: str) -> list[str]:
        """Return what both ranks have told, once they have."""
        found = [notes / f"{word}.{rank}" for rank in range(2)]
        assert not any(process.poll() for process in started), ranks.outputs(started)
        return [each.read_text() for each in found] if all(map(Path.exists, found)) else []

    eventually(lambda: told("ready"), 60)
    with tampered(daemon.pid, f"mkdir:{STALLS}"):  # no file of the step can be made
        (notes / "held").touch()
        eventually(lambda: told("saved"))
        eventually(lambda: staged(daemon) == [1])
        assert not any(notes.glob("told.*"))
    ranks.outputs(started)
    for each in map(json.loads, told("told")):
        assert each["during"], "the ranks meet while save() runs, and that was heard"
        assert each["after"] == []
    assert (root / "e" / "r" / "step-1" / "manifest.json").exists()
