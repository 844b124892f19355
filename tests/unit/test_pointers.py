"""The links `latest` and `best`, and what they name while somebody else commits it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from ckptd_daemon.save.attempts import Checkpoint
from ckptd_daemon.save.keeping import pointers
from ckptd_daemon.save.keeping.standing import Standing
from ckptd_daemon.save.places import Place
from ckptd_daemon.store import durable


def test_a_step_whose_name_is_not_on_the_disk_yet_is_not_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path, "e", "r")
    steps = tuple(Checkpoint(place, n, f"a{n}", "i", "p", 1, {}, 0.0) for n in (1, 2))
    for one in steps:
        place.step(one.step).mkdir(parents=True)
    pointers.move(place, Standing(steps[:1], {}), None)

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "the disk failed", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(durable, "sync_dir", fail)
        pointers.move(place, Standing(steps, {}), None)
    assert (place.directory / "latest").readlink() == Path("step-1")
    pointers.move(place, Standing(steps, {}), None)
    assert (place.directory / "latest").readlink() == Path("step-2")
