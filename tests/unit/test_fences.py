"""Which life of a run may save is remembered where its checkpoints are, and never guessed at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckptd_daemon.save.attempts import JobKey
from ckptd_daemon.save.commit import fences
from ckptd_daemon.save.places import Place
from ckptd_proto import errors


def life(root: Path, name: str) -> JobKey:
    return JobKey(name, Place(root, "e", "r"), name, 1, 0)


def test_a_life_that_was_overtaken_stays_out_on_whatever_node(tmp_path: Path) -> None:
    for name in ["first", "first", "second"]:
        fences.claim(life(tmp_path, name))
        fences.check(life(tmp_path, name))
    for refuses in [fences.claim, fences.check]:
        with pytest.raises(errors.FailedPrecondition, match=r"newer incarnation \(second\)"):
            refuses(life(tmp_path, "first"))


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"format": 1, "present": "x"}', "\0\0"])
def test_a_damaged_record_is_begun_anew(tmp_path: Path, damage: str) -> None:
    key = life(tmp_path, "first")
    fences.claim(key)
    key.place.fence.write_text(damage)
    fences.claim(life(tmp_path, "second"))
    assert json.loads(key.place.fence.read_text())["present"] == "second"


def test_a_record_of_a_newer_daemon_is_refused_and_left_alone(tmp_path: Path) -> None:
    key = life(tmp_path, "first")
    fences.claim(key)
    key.place.fence.write_text('{"format": 2, "now": "first"}')
    for refuses in [fences.claim, fences.check]:
        with pytest.raises(errors.FailedPrecondition, match="has format 2"):
            refuses(life(tmp_path, "second"))
    assert key.place.fence.read_text() == '{"format": 2, "now": "first"}'
