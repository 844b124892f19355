"""What is known to be bad of a step: read back before it is noted, and of one attempt only."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ckptd_daemon.save.attempts import Checkpoint, Flaw
from ckptd_daemon.save.commit import damage
from ckptd_daemon.save.commit.damage import Damage
from ckptd_daemon.save.places import Place
from ckptd_proto import errors
from ckptd_proto.crc import crc32c

CHUNK = 4096
DATA = bytes(range(256)) * 40  # two chunks and a half


@pytest.fixture
def step(tmp_path: Path) -> Checkpoint:
    place = Place(tmp_path, "e", "r")
    directory = place.step(7)
    directory.mkdir(parents=True)
    starts = range(0, len(DATA), CHUNK)
    sums = json.dumps(
        {
            "format": 1,
            "size_bytes": len(DATA),
            "chunk_bytes": CHUNK,
            "crc32c": [crc32c(DATA[start : start + CHUNK]) for start in starts],
        }
    ).encode()
    image = {"size_bytes": len(DATA), "sums_sha256": hashlib.sha256(sums).hexdigest()}
    (directory / "a").write_bytes(DATA)
    (directory / "a.sums").write_bytes(sums)
    (directory / "manifest.json").write_text(json.dumps({"images": {"a": image}}))
    return Checkpoint(place, 7, "1-x-y", "i", "p", len(DATA), {}, 0.0)


def image(step: Checkpoint) -> Path:
    return step.place.step(7) / "a"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_what_is_as_it_was_saved_is_not_bad_whoever_says_so(step: Checkpoint) -> None:
    for chunk in (None, 0, 1, 2):
        assert damage.inspect(step, "a", chunk) is None


@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_a_bad_chunk_is_found_and_no_other(step: Checkpoint, chunk: int) -> None:
    flip(image(step), chunk * CHUNK + 5)
    for at in (0, 1, 2):
        found = damage.inspect(step, "a", at)
        assert (found is not None) == (at == chunk)
        assert found is None or (found.attempt, found.chunk) == ("1-x-y", chunk)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: os.truncate(path, 5000), "5000 bytes instead of 10240"),
        (lambda path: path.with_name("a.sums").unlink(), "checksums are missing"),
        (lambda path: flip(path.with_name("a.sums"), -3), "vouches"),
    ],
)
def test_a_file_that_is_bad_as_a_whole_is_found(
    step: Checkpoint, harm: Callable[[Path], None], words: str
) -> None:
    harm(image(step))
    found = damage.inspect(step, "a", None)
    assert found is not None
    assert words in found.what


@pytest.mark.parametrize(("file", "chunk"), [("b", 0), ("../a", 0), ("a", 3), ("a.sums", None)])
def test_what_the_step_does_not_have_is_refused(
    step: Checkpoint, file: str, chunk: int | None
) -> None:
    with pytest.raises(errors.InvalidArgument):
        damage.inspect(step, file, chunk)


def test_what_is_noted_is_known_until_it_is_forgotten(step: Checkpoint) -> None:
    bad = Damage(7, step.attempt, "a", 2, "is bad", 5.0)
    damage.note(step.place, bad)
    assert damage.known(step) == bad
    assert damage.among(step.place, [step]) == {7: bad}
    damage.forget(step.place, 7)
    assert damage.known(step) is None
    damage.forget(step.place, 7)


def test_what_replaces_a_bad_step_is_not_bad_for_it(step: Checkpoint) -> None:
    damage.note(step.place, Damage(7, step.attempt, "a", None, "is bad", 5.0))
    damage.sweep(step.place, [step])
    assert damage.known(step) is not None
    other = replace(step, attempt="2-x-y")
    assert damage.known(other) is None
    damage.sweep(step.place, [other])
    assert damage.known(step) is None


def test_what_was_noted_of_a_step_that_says_nothing_now_stays(step: Checkpoint) -> None:
    bad = Damage(7, step.attempt, "a", None, "is bad", 5.0)
    damage.note(step.place, bad)
    unread = replace(step, attempt="", flaw=Flaw("is empty"))
    damage.sweep(step.place, [unread])
    assert damage.known(step) == bad
    assert damage.among(step.place, [unread])[7].what == "is empty"


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1, "step": 7}'])
def test_a_record_that_cannot_be_read_condemns_nothing_and_stays(
    step: Checkpoint, text: str
) -> None:
    path = step.place.directory / ".corrupt" / "step-7.json"
    path.parent.mkdir()
    path.write_text(text)
    assert damage.known(step) is None
    damage.sweep(step.place, [step])
    assert path.exists()
