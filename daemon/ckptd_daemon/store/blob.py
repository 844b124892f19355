"""One published file, and the note beside it that says what it is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from ckptd_daemon.store import notes
from ckptd_daemon.store.partials import DATA, JOURNAL
from ckptd_proto import errors

FORMAT: Final = 1
NOTE: Final = "blob.json"
RESERVED_NAMES: Final = frozenset({NOTE, DATA, JOURNAL})


def safe_name(name: str) -> str:
    """Return *name* if it is none of the names that the store itself uses beside a blob's."""
    return "content" if name in RESERVED_NAMES or name.endswith(".tmp") else name


class Verification(StrEnum):
    """The strongest thing that the bytes were checked against."""

    SHA256 = "sha256"
    STORE_CHECKSUM = "store_checksum"
    TRANSPORT = "transport"


@dataclass(frozen=True, slots=True)
class Blob:
    """One published file."""

    key: str
    object_id: str
    title: str
    version: str
    path: Path
    size_bytes: int
    sha256: str | None
    verification: Verification
    crc32c: tuple[int, ...]
    """Of each chunk of `chunk_bytes`, in order."""
    chunk_bytes: int
    published_at: float
    used_at: float
    noted_at: float = 0.0
    """When this process last wrote down that it is used."""
    is_second: bool = False
    """It was fetched again because somebody stated other bytes than the copy before had."""


def key_of(object_id: str, version: str) -> str:
    """Return the cache key of one version of an object."""
    return hashlib.sha256(f"{object_id}\0{version}".encode()).hexdigest()[:40]


def is_whole(blob: Blob) -> bool:
    """Tell whether the blob's file has the length that was published."""
    try:
        return blob.path.stat().st_size == blob.size_bytes
    except FileNotFoundError:
        return False


def fields_of(path: Path) -> dict[str, Any]:
    """Return what the note in *path* says, as it is written.

    Raises `FailedPrecondition` for a newer format, and `ValueError` if it is damaged.
    """
    try:
        return notes.decode((path / NOTE).read_bytes(), format_=FORMAT)
    except notes.FormatError as error:
        raise errors.FailedPrecondition(
            f"{path / NOTE} {error}, and this version reads {FORMAT}: "
            "upgrade ckptd, or give it another state directory"
        ) from error


def remains_of(path: Path) -> Blob | None:
    """Return what the note of a damaged blob says; None if that is damaged, or another format."""
    try:
        return read_note(path)
    except errors.FailedPrecondition:
        return None


def read_note(path: Path) -> Blob | None:
    """Return what the note in *path* says; None if it is damaged."""
    try:
        used_at = (path / NOTE).stat().st_mtime
        return blob_of(path, fields_of(path), used_at=used_at)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def blob_of(path: Path, note: Mapping[str, Any], *, used_at: float, noted_at: float = 0.0) -> Blob:
    """Return the blob in *path* of which a note says these *fields*."""
    return Blob(
        key=path.name,
        object_id=note["object"],
        title=note["title"],
        version=note["version"],
        path=path / note["name"],
        size_bytes=note["size_bytes"],
        sha256=note["sha256"],
        verification=Verification(note["verification"]),
        crc32c=tuple(note["crc32c"]),
        chunk_bytes=note["chunk_bytes"],
        published_at=note["published_at"],
        used_at=used_at,
        noted_at=noted_at,
        is_second=note.get("is_second", False),
    )
