"""What a notice of preemption says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptd_daemon.save.notices import OVER_S, Notice, moment, read

WRITTEN = 1_700_000_000.0


@pytest.fixture
def notice(tmp_path: Path) -> Path:
    return tmp_path / "notice"


def write(path: Path, text: str) -> None:
    path.write_text(text)
    os.utime(path, (WRITTEN, WRITTEN))


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("120", WRITTEN + 120),
        ("0.5", WRITTEN + 0.5),
        ("1700000090", 1_700_000_090),
        ("1700000090.25", 1_700_000_090.25),
        ("2023-11-14T22:15:00Z", 1_700_000_100),
        ("2023-11-14T23:15:00+01:00", 1_700_000_100),
        ("2023-11-14 22:15:00", 1_700_000_100),
    ],
)
def test_it_says_how_long_or_until_when(text: str, at: float) -> None:
    assert moment(text, written_at=WRITTEN) == at


@pytest.mark.parametrize(
    "text", ["soon", "-3", "nan", "inf", "1e999", "1e300", "1700000090000", "2023-99-01", "\0"]
)
def test_some_texts_are_no_time(text: str) -> None:
    assert moment(text, written_at=WRITTEN) is None


@pytest.mark.parametrize("text", ["", " \n", "shutting down"])
def test_a_file_that_says_no_time_means_soon(notice: Path, text: str) -> None:
    write(notice, text)
    assert read(notice, soon_s=25, now=WRITTEN) == Notice(WRITTEN + 25)


def test_where_there_is_no_file_there_is_no_notice(notice: Path) -> None:
    assert read(notice, soon_s=25, now=WRITTEN) is None
    assert read(notice / "below", soon_s=25, now=WRITTEN) is None


def test_a_node_that_lives_on_long_after_its_deadline_has_no_notice(notice: Path) -> None:
    write(notice, "60\n")
    assert read(notice, soon_s=25, now=WRITTEN + 60 + OVER_S - 1) == Notice(WRITTEN + 60)
    assert read(notice, soon_s=25, now=WRITTEN + 60 + OVER_S) is None


def test_what_is_no_file_is_not_waited_for(notice: Path) -> None:
    os.mkfifo(notice)
    os.utime(notice, (WRITTEN, WRITTEN))
    assert read(notice, soon_s=25, now=WRITTEN) == Notice(WRITTEN + 25)
