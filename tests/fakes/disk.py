"""A small ext4 of its own, on a loop device: it may lose its power, or be full."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fakes.require_real import need_programs, need_root
from fakes.waiting import eventually

_EXT4_IOC_SHUTDOWN = 0x8004587D
_NOT_EVEN_THE_LOG = 2  # what is not on the disk by now never gets there


class Disk:
    """A disk whose files are below `root`."""

    def __init__(self, device: str, root: Path) -> None:
        self.device, self.root = device, root

    def cut(self) -> None:
        """The power goes: only what was synced is there when it comes back."""
        top = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(top, _EXT4_IOC_SHUTDOWN, _NOT_EVEN_THE_LOG.to_bytes(4, "little"))
        finally:
            os.close(top)

    def come_back(self) -> None:
        """The power is there again; every process that had files open is dead."""
        _let_go(self.root)
        self.mount()

    def mount(self) -> None:
        # commits nothing by itself: what survives was synced by whoever wrote it
        _run("mount", "-t", "ext4", "-o", "commit=3600", self.device, str(self.root))


@contextmanager
def disk(directory: Path, size_mib: int = 256) -> Iterator[Disk]:
    """Give a disk of that size, mounted in *directory*, which is made."""
    need_root()
    need_programs("mkfs.ext4", "losetup", "mount")
    directory.mkdir()
    image = directory.with_name(f"{directory.name}.ext4")
    with image.open("wb") as file:
        file.truncate(size_mib << 20)
    _run("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0", str(image))
    one = Disk(_run("losetup", "--find", "--show", str(image)), directory)
    try:
        one.mount()
        yield one
    finally:
        _let_go(directory)
        _run("losetup", "--detach", one.device)


def _let_go(root: Path) -> None:
    """Unmount; a killed process may hold it for a moment after it was waited for."""
    eventually(lambda: not root.is_mount() or _unmounted(root))


def _unmounted(root: Path) -> bool:
    return subprocess.run(["umount", root], capture_output=True, check=False).returncode == 0


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout.strip()
