"""In which order steps were saved: by the lives of their run, then by the saves of each."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

from ckptd_daemon.save.attempts import Checkpoint, JobKey
from ckptd_daemon.save.commit import damage, fences
from ckptd_daemon.save.commit.damage import Damage
from ckptd_daemon.save.keeping import standing
from ckptd_daemon.save.keeping.standing import as_saved
from ckptd_daemon.save.places import Place

PLACE = Place(Path("/root"), "e", "r")


def saved(life: str, save: int, step: int, at: float = 0.0) -> Checkpoint:
    return Checkpoint(PLACE, step, f"{save}-0123456789ab-ff", life, "p", 1, {}, at)


def order(found: list[Checkpoint], *lives: str) -> list[int]:
    shuffled = random.Random(7).sample(found, len(found))
    return [one.step for one in as_saved(shuffled, lives)]


def test_a_later_life_comes_later_whatever_its_numbers_and_clocks_say() -> None:
    found = [saved("one", 8, 490, 900.0), saved("one", 9, 500, 901.0), saved("two", 0, 410, 5.0)]
    assert order(found, "one", "two") == [490, 500, 410]


def test_of_one_life_the_later_save_comes_later_though_it_was_committed_first() -> None:
    assert order([saved("a", 9, 90, 5.0), saved("a", 10, 100, 4.0)], "a") == [90, 100]
    assert order([saved("a", 3, 500), saved("a", 4, 410)], "a") == [500, 410]


def test_lives_that_nobody_remembers_come_first_by_their_clocks() -> None:
    found = [saved("x", 5, 30, 3.0), saved("y", 0, 20, 4.0), saved("y", 1, 25, 5.0)]
    assert order([*found, saved("now", 0, 10, 1.0)], "now") == [30, 20, 25, 10]


def test_what_has_no_number_comes_by_rising_step() -> None:
    found = [replace(saved("a", 0, step), attempt="f00d") for step in (7, 8, 9)]
    assert order(found) == [7, 8, 9]


def test_lives_are_as_the_fence_has_them(tmp_path: Path) -> None:
    place = Place(tmp_path, "e", "r")
    assert fences.lives(place) == ()
    for life in ("one", "two", "three"):
        fences.claim(JobKey("j", place, life, 1, 0))
    assert fences.lives(place) == ("one", "two", "three")
    place.fence.write_text("{")
    assert fences.lives(place) == ()
    place.fence.write_text(json.dumps({"format": 2}))
    assert fences.lives(place) == ()


def test_what_is_known_to_be_bad_is_not_the_latest_unless_all_is(tmp_path: Path) -> None:
    place = Place(tmp_path, "e", "r")
    found = [replace(saved("a", save, 10 * save), place=place) for save in (1, 2, 3)]
    for one, latest in ((found[2], 20), (found[1], 10), (found[0], 30)):
        damage.note(place, Damage(one.step, one.attempt, "a", 0, "is bad", 0.0))
        stands = standing.of(place, found)
        assert stands.latest is not None
        assert stands.latest.step == latest
