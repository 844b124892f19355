"""The kernel knows who has a file open; asking does nobody any harm."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckptd_daemon.store import readers

OPENING = """
import os, sys
while os.path.exists(sys.argv[1]):
    try:
        os.close(os.open(sys.argv[1], os.O_RDONLY))
    except FileNotFoundError:
        pass
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"data")
    path.chmod(0o444)
    return path


def test_a_file_that_nobody_has_open_is_free(file: Path) -> None:
    assert not readers.in_use(file)
    assert not readers.in_use(file.with_name("none"))


def test_a_file_that_is_open_is_in_use(file: Path) -> None:
    with file.open("rb"):
        assert readers.in_use(file)
    assert not readers.in_use(file)


def test_a_file_that_is_mapped_and_no_longer_open_is_in_use(file: Path) -> None:
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
    assert readers.in_use(file)
    mapped.close()
    assert not readers.in_use(file)


def test_a_file_with_another_name_is_in_use(file: Path) -> None:
    os.link(file, file.with_name("other"))
    assert readers.in_use(file)


def test_asking_survives_others_who_open_the_file_at_the_same_time(file: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", OPENING, str(file)])
    answers = {readers.in_use(file) for _ in range(3000)}
    file.unlink()
    assert other.wait(10) == 0
    assert answers <= {True, False}
