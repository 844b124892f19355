"""A save of which nothing is written says so, for its place may hang."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ckptd_daemon.save.attempts import Attempt, JobKey, State
from ckptd_daemon.save.places import Place
from ckptd_daemon.save.track import Track

JOB = JobKey("job", Place(Path("/root"), "e", "r"), "i", 1, 0)


@pytest.fixture
def track() -> Track:
    """One that is being written since a while."""
    attempt = Attempt("1-a", JOB, 1, 7, "plan", replaces=False, state=State.STAGED)
    one = Track(attempt)
    one.begin_to_persist()
    one.moved_at -= 75
    return one


def test_a_save_of_which_nothing_is_written_says_for_how_long(track: Track) -> None:
    assert track.progress().note == "nothing was written for 70 s; look at its filesystem"


def test_one_that_is_written_or_waits_or_is_over_does_not(track: Track) -> None:
    track.wrote(1)
    assert track.progress().note == ""
    track.moved_at -= 75
    track.wait_again()
    assert track.progress().note == ""
    track.begin_to_persist()
    track.moved_at -= 75
    track.attempt = replace(track.attempt, state=State.ABORTED)
    assert track.progress().note == ""


def test_what_else_there_is_to_say_comes_first(track: Track) -> None:
    track.remark("it goes away")
    assert track.progress().note == "it goes away"
