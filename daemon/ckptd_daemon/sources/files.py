"""file:// and local paths: already here, and returned as they are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptd_proto import errors


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file or directory of this node that somebody else looks after."""

    path: Path
    size_bytes: int
    device: int
    inode: int


def look(path: Path, *, is_own_uid: bool, read_roots: Sequence[Path]) -> LocalFile:
    """Return what is at *path*; blocks on the disk.

    A caller of another uid learns nothing about what lies outside *read_roots*, links followed.
    """
    real = Path(os.path.realpath(path))
    if not is_own_uid and not any(
        real.is_relative_to(os.path.realpath(root)) for root in read_roots
    ):
        raise errors.PermissionDenied(
            f"{path} is outside the read_roots of this daemon, which belongs to another user"
        )
    try:
        found = real.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise errors.NotFound(
            f"there is no file {path}, and it is no URL such as https://…"
        ) from None
    except PermissionError as error:
        raise errors.PermissionDenied(f"the daemon may not look at {path}") from error
    return LocalFile(path, found.st_size, found.st_dev, found.st_ino)


def require_sha256(path: Path, sha256: str) -> None:
    """Check the file at *path* against *sha256*; raises `DataLoss`. Blocks on the disk."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except IsADirectoryError:
        text = f"{path} is a directory, and a SHA-256 can only be stated for a file"
        raise errors.InvalidArgument(text) from None
    except PermissionError as error:
        raise errors.PermissionDenied(f"the daemon may not read {path}") from error
    if found != sha256:
        raise errors.DataLoss(f"{path} has the SHA-256 {found}, not the stated {sha256}")
