"""What a manifest says, and what is said of one that says nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd_daemon.save.attempts import Attempt, Checkpoint, Image, JobKey
from ckptd_daemon.save.commit import manifests
from ckptd_daemon.save.commit.proof import Receipt
from ckptd_daemon.save.nodes import receipts
from ckptd_daemon.save.places import MANIFEST, Place
from ckptd_proto import errors

RECEIPTS = {"a": Receipt(Image("a", 10), "h", "ab" * 32, 1)}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, "e", "r")


@pytest.fixture
def data(place: Place) -> bytes:
    """The manifest of step 7."""
    attempt = Attempt("7-abc", JobKey("j", place, "i", 1, 0), 7, 7, "h", False)
    return manifests.encode(attempt, RECEIPTS)


def written(place: Place, step: int, data: bytes) -> Checkpoint | None:
    directory = place.step(step)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MANIFEST).write_bytes(data)
    (directory / "a").write_bytes(b"0123456789")
    return manifests.read(place, step)


def without_each(data: bytes) -> Iterator[bytes]:
    raw = json.loads(data)
    for name in raw.keys() - {"uid", "world_size"}:
        yield json.dumps({key: value for key, value in raw.items() if key != name}).encode()


def test_what_lacks_anything_has_a_flaw_and_so_has_what_is_cut_off_anywhere(
    place: Place, data: bytes
) -> None:
    damaged = [*without_each(data), *(data[:length] for length in range(len(data)))]
    for each in damaged:
        assert manifests.understood(each, place, 7).flaw is not None, each
    assert manifests.understood(data, place, 7).flaw is None


@pytest.mark.parametrize(
    "change",
    [
        {"format": 0},
        {"format": "2"},
        {"format": None},
        {"format": True, "step": []},
        {"images": []},
        {"images": {"a": {"size_bytes": 10}}},
        {"step": 1e999},
        {"metrics": {"loss": []}},
    ],
)
def test_what_is_of_the_wrong_kind_has_a_flaw(
    place: Place, data: bytes, change: dict[str, object]
) -> None:
    changed = json.dumps(json.loads(data) | change).encode()
    assert manifests.understood(changed, place, 7).flaw is not None
    assert manifests.understood(b"[" * 100_000, place, 7).flaw is not None


def test_of_a_damaged_one_the_place_and_the_size_are_known(place: Place) -> None:
    found = written(place, 7, b"")
    assert found is not None
    assert found.flaw is not None
    assert found.flaw.what == "is empty"
    assert (found.place, found.step, found.attempt, found.size_bytes) == (place, 7, "", 10)
    assert found.committed_at == (place.step(7) / MANIFEST).stat().st_mtime
    assert manifests.of_run(place) == [found]


def test_a_newer_one_is_listed_and_never_given_as_the_step(place: Place, data: bytes) -> None:
    newer = json.dumps(json.loads(data) | {"format": 2, "images": None}).encode()
    with pytest.raises(errors.Unimplemented, match="step-7 is written in format 2"):
        written(place, 7, newer)
    (found,) = manifests.of_run(place)
    assert found.flaw is not None
    assert found.flaw.is_newer


def test_one_that_was_made_for_another_step_or_run_is_left_alone(place: Place, data: bytes) -> None:
    with pytest.raises(errors.AlreadyExists, match="is that of step 7"):
        written(place, 8, data)
    elsewhere = Place(place.root, "e", "other")
    with pytest.raises(errors.AlreadyExists, match="is that of e/r"):
        written(elsewhere, 7, data)
    assert manifests.committed(place.root, "", "") == []


def test_what_daemons_tell_each_other_of_a_step_is_what_older_ones_understand(
    place: Place, data: bytes
) -> None:
    found = manifests.decode(data, place)
    note = receipts.encode_note("7-abc", "i", found)
    assert "flaw" not in json.loads(note)["same_as"]
    assert receipts.decode_note(note, place) == found
