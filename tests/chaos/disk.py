"""What befalls the disk below a daemon: damaged and cut files, and no room at all."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SMALL_DISK_BYTES = 420 << 20


@contextmanager
def small_disk(directory: Path) -> Iterator[bool]:
    """Mount a small disk at *directory* where that may be done; tells whether."""
    directory.mkdir(parents=True)
    mount = [
        "mount",
        "-t",
        "tmpfs",
        "-o",
        f"size={SMALL_DISK_BYTES},mode=700",
        "none",
        str(directory),
    ]
    is_mounted = os.geteuid() == 0 and subprocess.run(mount, check=False).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(directory)], check=True)


class Disk:
    """The state directory of a daemon."""

    def __init__(self, state_dir: Path, *, is_small: bool) -> None:
        self._state_dir = state_dir
        self._cache_dir = state_dir / "cache"
        self.is_small = is_small

    @contextmanager
    def filled(self, left_bytes: int) -> Iterator[None]:
        """Leave only so much room inside the block."""
        ballast = self._state_dir / "ballast"
        stat = os.statvfs(self._state_dir)
        with ballast.open("wb") as file, suppress(OSError):  # others may be quicker
            size_bytes = max(0, stat.f_bavail * stat.f_frsize - left_bytes)
            os.posix_fallocate(file.fileno(), 0, max(1, size_bytes))
        try:
            yield
        finally:
            ballast.unlink()

    def spoil(self, drawn: random.Random) -> str:
        """Damage or cut, while no daemon runs, a file that nobody was handed; tells what it did."""
        kinds: list[Callable[[], list[Path]]] = [
            self._partials,
            self._partials,
            self._notes,
            self._blobs,
            self._set_aside,
            self._prefetches,
            self._lease_of_nobody,
        ]
        files = sorted(drawn.choice(kinds)())
        where, how, what = drawn.random(), drawn.random(), drawn.randrange(1, 256)
        if not files:
            return "nothing to spoil"
        path = files[drawn.randrange(len(files))]
        at = int(where * path.stat().st_size)
        is_data = path.parent.parent.parent.name == "blobs" and path.name != "blob.json"
        if how < 0.3 or is_data:  # other damage of a blob is only told by reading it back
            path.chmod(0o600)
            os.truncate(path, at)
            return f"{path} is cut to {at} bytes"
        flip(path, at, what)
        return f"{path} is damaged at {at}"

    def _partials(self) -> list[Path]:
        return [*self._cache_dir.glob("partials/*/*")]

    def _prefetches(self) -> list[Path]:
        return [*self._cache_dir.glob("prefetches/*.json")]

    def _set_aside(self) -> list[Path]:
        return [*self._cache_dir.glob("quarantine/*/*")]

    def _notes(self) -> list[Path]:
        held = self._held()
        notes = [*self._cache_dir.glob("blobs/*/*/blob.json")]
        notes += self._cache_dir.glob("snapshots/*/snapshot.json")
        return [note for note in notes if note.parent.name not in held]

    def _blobs(self) -> list[Path]:
        held = self._held()
        return [
            path
            for path in self._cache_dir.glob("blobs/*/*/*")
            if path.parent.name not in held and path.name != "blob.json" and path.stat().st_size
        ]

    def _lease_of_nobody(self) -> list[Path]:
        path = self._cache_dir / "leases" / f"{'0' * 32}.json"
        path.write_text('{"format": 1, "id": "')
        return [path]

    def _held(self) -> set[str]:
        """The keys of what is leased, and of the blobs of what is."""
        held = set()
        for path in self._cache_dir.glob("leases/*.json"):
            with suppress(ValueError, KeyError):
                held.add(json.loads(path.read_bytes())["key"])
        for note in self._cache_dir.glob("snapshots/*/snapshot.json"):
            with suppress(ValueError, KeyError):
                if note.parent.name in held:
                    held |= {*json.loads(note.read_bytes())["files"].values()}
        return held


def flip(path: Path, at: int, what: int = 0x55) -> None:
    """Change the byte of *path* at *at*, below whoever has it open."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ what]) if old else b"x")
