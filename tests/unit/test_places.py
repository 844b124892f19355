from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd_daemon.save import places
from ckptd_daemon.save.places import Place, check_image_name, check_name, step_number
from ckptd_proto import errors


@given(st.text(max_size=140))
def test_an_accepted_name_is_one_directory_below_the_root(name: str) -> None:
    try:
        check_name("run", name)
    except errors.InvalidArgument:
        return
    path = Path("/root") / name
    assert path.parent == Path("/root")
    assert os.path.normpath(path) == str(path)
    assert len(os.fsencode(name)) <= 128
    assert not name.startswith(".")
    assert all(ord(letter) >= 32 for letter in name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "/", "a\0", "a\n", "\x7f", "x" * 129, "\u00e9" * 65]
)
def test_a_name_that_is_no_plain_directory_is_refused(name: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="choose another name"):
        check_name("run", name)


@pytest.mark.parametrize(
    "name", ["a", "x" * 128, "step-1", "lr=0.1, wd=1e-4", "\u65e5\u672c", "a..b"]
)
def test_a_plain_name_is_accepted(name: str) -> None:
    check_name("run", name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "manifest.json", "a.sums", "a\n", "x" * 251]
)
def test_an_image_name_that_would_overwrite_or_leave_is_refused(name: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="choose another name"):
        check_image_name(name)


@pytest.mark.parametrize("root", ["", "relative", "/a/../b", "/a\0b"])
def test_a_root_that_is_not_plainly_absolute_is_refused(root: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="absolute path"):
        Place.named(root, "e", "r")


@given(st.integers(0, places.STEP_MAX))
def test_a_step_is_read_back_from_its_directory(step: int) -> None:
    assert step_number(Place(Path("/x"), "e", "r").step(step).name) == step


@pytest.mark.parametrize("name", ["step-", "step-01", "step--1", "step-x", "7", "step-\u0663"])
def test_other_names_are_no_steps(name: str) -> None:
    assert step_number(name) is None


def usable(root: Path, *, uid: int | None = None, below: tuple[Path, ...] = ()) -> None:
    stat = root.stat() if root.exists() else None
    places.check_user_below(root, os.getuid() if uid is None else uid, below)
    places.make_root(Place(root, "e", "r"), stat.st_dev if stat else 0, stat.st_ino if stat else 0)


def test_a_missing_root_is_created(tmp_path: Path) -> None:
    usable(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_root_that_is_only_read_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound, match="there is no directory"):
        places.check_root(tmp_path / "a", 0, 0)
    assert not (tmp_path / "a").exists()


def test_a_file_is_no_root(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.InvalidArgument):
        usable(tmp_path / "file")
    with pytest.raises(errors.InvalidArgument):
        usable(tmp_path / "file" / "below")


def test_a_root_that_cannot_be_written_will_do_if_what_is_below_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(errors.PermissionDenied, match="make it writable"):
        usable(tmp_path)
    (tmp_path / "e").mkdir()
    usable(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) == tmp_path)
    with pytest.raises(errors.PermissionDenied, match=f"may not write in {tmp_path / 'e'};"):
        usable(tmp_path)


def test_a_root_that_the_client_sees_otherwise_is_refused_naming_both(tmp_path: Path) -> None:
    here = tmp_path.stat()
    for root, seen in (
        (tmp_path, f"inode {here.st_ino} for the daemon"),
        (tmp_path / "x", "nothing"),
    ):
        with pytest.raises(errors.FailedPrecondition, match=f"inode 5 for this process.*{seen}"):
            places.make_root(Place(root, "e", "r"), 1, 5)
    assert not (tmp_path / "x").exists()


def test_another_user_saves_only_below_the_save_roots(tmp_path: Path) -> None:
    allowed, other = tmp_path / "allowed", tmp_path / "other"
    allowed.mkdir()
    other.mkdir()
    (allowed / "out").symlink_to(other)
    usable(allowed / "theirs", uid=12345, below=(allowed,))
    for root in (other, tmp_path, allowed / "out"):
        with pytest.raises(errors.PermissionDenied, match="save_roots"):
            usable(root, uid=12345, below=(allowed,))


def test_another_users_run_may_not_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "r").symlink_to("/etc")
    place = Place(tmp_path, "e", "r")
    places.check_no_links(place, os.getuid())
    with pytest.raises(errors.PermissionDenied, match="symbolic link"):
        places.check_no_links(place, 12345)


def test_metrics_are_bounded_by_number_and_by_the_bytes_of_their_names() -> None:
    places.check_metrics({f"{number:0128}": 0.0 for number in range(places.METRICS_MAX)})
    with pytest.raises(errors.InvalidArgument, match="1025 metrics are too many"):
        places.check_metrics({str(number): 0.0 for number in range(places.METRICS_MAX + 1)})
    with pytest.raises(errors.InvalidArgument, match="names of 2 metrics take 131074 bytes"):
        places.check_metrics({"ä" * (places.METRICS_BYTES_MAX // 2): 0.0, "xy": 0.0})
