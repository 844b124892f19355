"""Which names one node believes there are: for a while, as an NFS client does.

It asks again when somebody opens their directory, but not for a listing.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Seen:
    """What a name was found to be, and until when that is believed."""

    attributes: dict[str, int] | None
    handle: int | None
    """Of a directory: it is this one, whatever its name is now."""
    until: float


class View:
    """What the node believes of names."""

    def __init__(self, truth: str) -> None:
        self._lag_s = 0.0
        self._truth = truth
        self._seen: dict[str, _Seen] = {}
        self._listed: dict[str, tuple[list[tuple[str, int]], float]] = {}

    def lag(self, seconds: float) -> None:
        """Believe for so long what was found."""
        self._lag_s = seconds

    def real(self, path: str) -> Path:
        """Return where *path* is: in the directory that its parent was found to be."""
        parent, _, name = path.rpartition("/")
        seen = self._seen.get(parent)
        if seen is not None and seen.handle is not None and time.monotonic() < seen.until:
            return Path(f"/proc/self/fd/{seen.handle}/{name}")
        return Path(self._truth + path)

    def look(self, path: str) -> dict[str, int]:
        """Return the attributes of *path*; raises `FileNotFoundError`."""
        seen = self._seen.get(path)
        if seen is None or time.monotonic() >= seen.until:
            seen = self._look_anew(path)
        if seen.attributes is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return seen.attributes

    def list(self, path: str) -> list[tuple[str, int]]:
        """Return the names in a directory, and their inodes."""
        names, until = self._listed.get(path, ([], 0.0))
        if time.monotonic() >= until:
            with os.scandir(self.real(path)) as found:
                names = [(one.name, one.inode()) for one in found]
            self._listed[path] = names, time.monotonic() + self._lag_s
        return names

    def changed(self, *paths: str) -> None:
        """Forget what was known of *paths*, and below them: the node itself has changed them."""
        for path in paths:
            self._listed.pop(path.rpartition("/")[0] or "/", None)
            self._forget(lambda known, path=path: known == path or known.startswith(f"{path}/"))

    def opened(self, path: str) -> None:
        """Ask again what is in the directory *path*."""
        self._forget(lambda known: known.rpartition("/")[0] == path.rstrip("/"))

    def _forget(self, which: Callable[[str], bool]) -> None:
        for known in [known for known in list(self._seen) if which(known)]:
            self._seen.pop(known, None)

    def _look_anew(self, path: str) -> _Seen:
        until = time.monotonic() + self._lag_s
        try:
            found, handle = self.real(path).lstat(), None
            if stat.S_ISDIR(found.st_mode) and self._lag_s:
                handle = os.open(self.real(path), os.O_PATH)  # never closed: calls may be using it
            seen = _Seen(attributes_of(found), handle, until)
        except (FileNotFoundError, NotADirectoryError):
            seen = _Seen(None, None, until)
        if self._lag_s:
            self._seen[path] = seen
        return seen


def attributes_of(found: os.stat_result) -> dict[str, int]:
    names = ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks")
    times = {f"st_{one}time": getattr(found, f"st_{one}time_ns") for one in "amc"}
    return {name: getattr(found, name) for name in names} | times
