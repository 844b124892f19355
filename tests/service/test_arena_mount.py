"""The memory that the mount unit gives to staged saves, as the kernel gives it."""

from __future__ import annotations

import configparser
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd_daemon.save.arena import pages, slots
from fakes.require_real import need_programs, need_root

UNIT = Path(__file__).parents[2] / "systemd" / "dev-shm-ckptd.mount"
SIZE_BYTES = 8 << 20


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    need_root()
    need_programs("mount", "umount")
    unit = configparser.ConfigParser(interpolation=None)
    unit.read(UNIT)
    options, where = unit["Mount"]["Options"], tmp_path / "arena"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", where], check=True)
    yield where
    subprocess.run(["umount", "--lazy", where], check=True)


def test_it_is_of_huge_pages(mounted: Path) -> None:
    slot = slots.create(mounted, SIZE_BYTES)
    assert slot.view is not None
    assert slot.view[:] == bytes(SIZE_BYTES)  # touched
    huge_bytes = _huge_bytes(slot.id)
    slot.destroy()
    assert huge_bytes == SIZE_BYTES


def _huge_bytes(name: str) -> int:
    """Return how much of the mapping of a file of that *name* is of huge pages."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    next(line for line in lines if name in line)
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("ShmemPmdMapped:"))


def test_only_of_small_pages_the_log_says_what_to_do(
    mounted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pages.advise(mounted)
    assert not caplog.records
    subprocess.run(["mount", "-o", "remount,huge=never", mounted], check=True)
    pages.advise(mounted)
    assert f"mount -o remount,huge=within_size {mounted}" in caplog.text
