"""Which life of a run may save is remembered, and never guessed at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckptd_daemon.save.attempts import JobKey
from ckptd_daemon.save.fences import check_fence
from ckptd_daemon.save.places import Place
from ckptd_proto import errors


def life(name: str) -> JobKey:
    return JobKey(name, Place(Path("/root"), "e", "r"), name, 1, 0)


def test_a_life_that_was_overtaken_stays_out_after_a_restart(tmp_path: Path) -> None:
    for name in ["first", "first", "second"]:
        check_fence(tmp_path, life(name))
    with pytest.raises(errors.FailedPrecondition, match=r"newer incarnation \(second\)"):
        check_fence(tmp_path, life("first"))


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"format": 1, "present": "x"}', "\0\0"])
def test_a_damaged_record_is_begun_anew(tmp_path: Path, damage: str) -> None:
    check_fence(tmp_path, life("first"))
    (record,) = tmp_path.iterdir()
    record.write_text(damage)
    check_fence(tmp_path, life("second"))
    assert json.loads(record.read_text())["present"] == "second"


def test_a_record_of_a_newer_daemon_is_refused_and_left_alone(tmp_path: Path) -> None:
    check_fence(tmp_path, life("first"))
    (record,) = tmp_path.iterdir()
    record.write_text('{"format": 2, "now": "first"}')
    with pytest.raises(errors.FailedPrecondition, match="has format 2"):
        check_fence(tmp_path, life("second"))
    assert record.read_text() == '{"format": 2, "now": "first"}'
