"""file:// and local paths: already here, and returned as they are."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckptd_proto import errors, refs

_LOOK = os.O_PATH | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file or directory of this node that somebody else looks after."""

    path: Path
    size_bytes: int
    device: int
    inode: int


def look(path: Path, sha256: str | None, *, below: Sequence[Path] | None) -> LocalFile:
    """Return what is at *path*, whose bytes hash to *sha256* if stated; blocks on the disk.

    With *below*, only what lies under these roots, reached without any link, is looked at.
    """
    with _opened(path, below) as fd:
        found = os.fstat(fd)
        if sha256 is not None:
            _require_sha256(path, fd, found, sha256)
    return LocalFile(path, found.st_size, found.st_dev, found.st_ino)


@contextmanager
def _opened(path: Path, below: Sequence[Path] | None) -> Iterator[int]:
    """Open *path* only to look at it, so that what is checked is what is read."""
    try:
        fd = os.open(path, _LOOK) if below is None else _opened_below(path, below)
    except (FileNotFoundError, NotADirectoryError):
        raise refs.missing(path, path) from None
    except PermissionError as error:
        raise errors.PermissionDenied(f"the daemon may not look at {path}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _opened_below(path: Path, roots: Sequence[Path]) -> int:
    """Walk from a root down, one component at a time: nobody can swap a link in."""
    root = next((root for root in roots if path.is_relative_to(root)), None)
    if root is None or ".." in path.parts:
        raise errors.PermissionDenied(
            f"{path} is outside the read_roots of this daemon, which belongs to another user"
        )
    fd = os.open(root, _LOOK)
    for part in path.relative_to(root).parts:
        above = fd
        try:
            fd = os.open(part, _LOOK | os.O_NOFOLLOW, dir_fd=above)
        finally:
            os.close(above)
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            os.close(fd)
            raise errors.PermissionDenied(
                f"{path} leads over a link, which this daemon of another user does not follow; "
                "name the file itself"
            )
    return fd


def _require_sha256(path: Path, fd: int, found: os.stat_result, sha256: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        text = f"{path} is no regular file, and a SHA-256 can only be stated for one"
        raise errors.InvalidArgument(text)
    try:
        with Path(f"/proc/self/fd/{fd}").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except PermissionError as error:
        raise errors.PermissionDenied(f"the daemon may not read {path}") from error
    if digest != sha256:
        raise errors.DataLoss(f"{path} has the SHA-256 {digest}, not the stated {sha256}")
