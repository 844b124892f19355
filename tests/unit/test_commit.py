"""What is left of attempts, and what is put back, after crashes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from ckptd_daemon.config import Config
from ckptd_daemon.save.attempts import Attempt, JobKey
from ckptd_daemon.save.commit import commit, fences, manifests
from ckptd_daemon.save.images.persist import persist
from ckptd_daemon.save.images.writers import Writers
from ckptd_daemon.save.members import Members
from ckptd_daemon.save.nodes import elsewhere
from ckptd_daemon.save.nodes.protocol import NOTE, RECEIPTS, REPLACED
from ckptd_daemon.save.nodes.receipts import decode_note
from ckptd_daemon.save.places import MANIFEST, Place


def attempt_below(root: Path) -> Attempt:
    return Attempt("7-abc", JobKey("j", Place(root, "e", "r"), "i", 1, 0), 7, 7, "h", False)


def repair(key: JobKey, earlier: Sequence[str]) -> None:
    """What the first save of a life does."""
    commit.repair(key.place, "b" * 12, (), earlier)
    elsewhere.end_earlier(key, (), earlier)


def test_an_attempt_is_cleared_however_often_a_crash_interrupted_that(tmp_path: Path) -> None:
    directory = commit.directory_of(attempt := attempt_below(tmp_path))
    for deleted_half in [f"{directory.name}.gone", f"{directory.name}.0.gone"]:
        (directory.parent / deleted_half / "left").mkdir(parents=True)
    (directory / "half an image").mkdir(parents=True)
    commit.clear(attempt)
    assert not directory.exists()


def test_what_another_node_is_about_to_begin_is_left_to_it(tmp_path: Path) -> None:
    key = JobKey("j", Place(tmp_path, "e", "r"), "now", 2, 0)
    members = Members(("a" * 12, "b" * 12), (0, 1), 1)
    ours, earlier = (members.attempt_id(life, 0) for life in ("now", "before"))
    for name in (ours, f"{ours}.1234.new", earlier, f"{earlier}.1234.new"):
        (key.place.attempts / name / RECEIPTS).mkdir(parents=True)
    repair(key, ["before"])
    note = f"{earlier}{NOTE}"
    left = {path.name for path in key.place.attempts.iterdir()}
    assert left == {ours, f"{ours}.1234.new", note}
    why = decode_note((key.place.attempts / note).read_bytes(), key.place)
    assert "a newer incarnation (now)" in str(why)


def test_an_old_life_that_is_late_ends_nothing_of_a_newer_one(tmp_path: Path) -> None:
    members = Members(("a" * 12, "b" * 12), (0, 1), 1)
    place = Place(tmp_path, "e", "r")
    newer = members.attempt_id("next", 0)
    (place.attempts / newer / RECEIPTS).mkdir(parents=True)
    (place.attempts / f"{newer}{NOTE}").write_bytes(b"{}")
    repair(key := JobKey("j", place, "now", 2, 0), fences.claim(key))
    assert len(list(place.attempts.iterdir())) == 2


def test_why_attempts_of_the_last_life_were_given_up_stays_for_those_who_ask_late(
    tmp_path: Path,
) -> None:
    members = Members(("a" * 12, "b" * 12), (0, 1), 1)
    place = Place(tmp_path, "e", "r")
    place.attempts.mkdir(parents=True)
    for life in ("first", "second", "third"):
        earlier = fences.claim(JobKey("j", place, life, 2, 0))
        (place.attempts / f"{members.attempt_id(life, 0)}{NOTE}").write_bytes(b"{}")
    repair(JobKey("j", place, "third", 2, 0), earlier)
    kept = {f"{members.attempt_id(life, 0)}{NOTE}" for life in ("second", "third")}
    assert {path.name for path in place.attempts.iterdir()} == kept


@pytest.mark.parametrize("name", ["{}", "{}.1234.gone"])
def test_a_step_that_another_node_had_just_moved_aside_is_not_deleted_with_its_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    old = attempt_below(tmp_path)
    key = JobKey("j", old.job.place, "now", 2, 0)
    earlier = Members(("a" * 12, "b" * 12), (0, 1), 1).attempt_id("before", 0)
    there = key.place.attempts / name.format(earlier)
    (there / RECEIPTS).mkdir(parents=True)
    (there / REPLACED).mkdir()
    (there / REPLACED / MANIFEST).write_bytes(manifests.encode(old, {}))
    monkeypatch.setattr(commit, "put_back", lambda *_: None)  # it looked a moment before
    repair(key, ["before"])
    assert manifests.read(key.place, old.step) is not None
    assert not [path for path in key.place.attempts.iterdir() if path.suffix != NOTE]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_damaged_step_that_was_moved_aside_goes_once_the_new_one_is_there(
    tmp_path: Path, is_there: bool
) -> None:
    new = attempt_below(tmp_path)
    aside = commit.directory_of(new).with_name(f"{new.id}{REPLACED}")
    aside.mkdir(parents=True)
    (aside / MANIFEST).write_bytes(b"")
    if is_there:
        new.job.place.step(new.step).mkdir()
        (new.job.place.step(new.step) / MANIFEST).write_bytes(manifests.encode(new, {}))
    commit.put_back(new.job.place, ())
    assert aside.exists() is not is_there


def test_images_that_come_late_do_not_bring_back_the_directory_of_an_attempt_that_is_gone(
    tmp_path: Path,
) -> None:
    async def write() -> None:
        await persist(
            *(tmp_path, tmp_path / "attempt" / ".node", (), "h"),
            writers=Writers(Config()),
            on_written=lambda _: None,
            earlier=(),
        )

    with pytest.raises(FileNotFoundError):
        anyio.run(write)
    assert list(tmp_path.iterdir()) == []
