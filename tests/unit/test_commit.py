"""What is left of attempts, and what is put back, after crashes."""

from __future__ import annotations

from pathlib import Path

from ckptd_daemon.save import commit
from ckptd_daemon.save.attempts import Attempt, JobKey
from ckptd_daemon.save.places import Place


def attempt_below(root: Path) -> Attempt:
    return Attempt("7-abc", JobKey("j", Place(root, "e", "r"), "i", 1, 0), 7, 7, "h", False)


def test_an_attempt_is_cleared_however_often_a_crash_interrupted_that(tmp_path: Path) -> None:
    directory = commit.directory_of(attempt := attempt_below(tmp_path))
    for deleted_half in [f"{directory.name}.gone", f"{directory.name}.0.gone"]:
        (directory.parent / deleted_half / "left").mkdir(parents=True)
    (directory / "half an image").mkdir(parents=True)
    commit.clear(attempt)
    assert not directory.exists()
