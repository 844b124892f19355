"""What is told of saves in hand: how fast they are written, and how much of a run is safe."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from ckptd_daemon.save.arena.arena import Arena
from ckptd_daemon.save.attempts import Attempt, Checkpoint, Image, JobKey
from ckptd_daemon.save.places import Place
from ckptd_daemon.save.track import Track
from ckptd_daemon.save.tracks import Tracks

PLACE = Place(Path("/root"), "e", "r")
KEY = JobKey("j", PLACE, "now", 1, 0)


def saved(life: str, save: int, step: int) -> Checkpoint:
    return Checkpoint(PLACE, step, f"{save}-0123456789ab-ff", life, "p", 1, {}, 0.0)


def test_the_speed_of_a_save_is_told_while_it_is_written_and_only_then() -> None:
    track = Track(Attempt("a", KEY, 0, 1, "p", replaces=False))
    track.become(track.attempt.with_seal(0, (Image("i", 100),)))
    assert (track.reading().rate_bytes_per_s, track.reading().eta_s) == (0.0, None)
    track.begin_to_persist()
    assert track.began_at is not None
    track.rate.begin(0, track.began_at - 10.0)  # ten seconds ago
    track.done_bytes = 50
    reading = track.reading()
    assert 4.0 < reading.rate_bytes_per_s <= 5.0
    assert reading.eta_s is not None
    assert 10.0 <= reading.eta_s < 12.5
    track.done_bytes = 100
    assert (track.reading().rate_bytes_per_s, track.reading().eta_s) == (0.0, None)


def test_the_newest_step_of_a_run_is_what_was_saved_last() -> None:
    tracks = Tracks(cast(Arena, None))
    tracks.note_run(PLACE, None)
    assert (tracks.newest, tracks.unsaved) == ((), (PLACE,))
    told = [
        (saved("one", 9, 500), 500),
        (saved("one", 8, 490), 500),  # committed later, when the newest went first
        (saved("two", 0, 410), 410),
        (None, 410),
    ]
    for found, step in told:
        tracks.note_run(PLACE, found)
        assert [one.step for one in tracks.newest] == [step]
        assert tracks.unsaved == ()
