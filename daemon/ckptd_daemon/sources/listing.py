"""What a directory of a remote is: a set of files below one URL, each with a safe relative name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import quote, urlsplit, urlunsplit

from ckptd_proto import errors

FILES_MAX = 10_000
DEPTH_MAX = 16
PATH_MAX_BYTES = 1024
NAME_MAX_BYTES = 255
SIZE_END = 1 << 63
"""Of a file, and of all files of a listing together: no size, nor a sum, is as large."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a listing, and what is said of it."""

    path: str
    """Relative, with `/`; every component is safe as a file name."""
    size_bytes: int | None = None
    sha256: str | None = None
    crc32c: tuple[int, ...] = ()
    """Of each chunk of 16 MiB, in order; empty if not stated."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one directory, below it at any depth, in the order of their names."""

    title: str
    """What people see as the directory's name."""
    entries: tuple[Entry, ...]
    url: str = field(repr=False)
    """As it was asked for, secrets included."""
    is_stated: bool = False
    """Sizes and checksums are a publisher's promise, rather than what a page happened to show."""


class Lister(Protocol):
    """A kind of remote that has directories."""

    async def listing(self, url: str, *, only_public: bool) -> Listing:
        """Return the files below *url*.

        Raises `TransientError` for what may pass, and one of our typed errors else.
        """


def checked(title: str, entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return *entries* in order if they can all be files of one directory.

    Raises `FailedPrecondition` for a name that could lead elsewhere, for a name that is both a
    file and a directory, for too many, and for more bytes than there can be.
    """
    found: dict[str, Entry] = {}
    for entry in entries:
        if wrong := wrong_path(entry.path):
            raise refused(title, f"{entry.path!r} {wrong}")
        if found.setdefault(entry.path, entry) != entry:
            raise refused(title, f"{entry.path!r} is named twice, with different properties")
        if len(found) > FILES_MAX:
            raise refused(title, f"it names more than {FILES_MAX} files")
    if sum(entry.size_bytes or 0 for entry in found.values()) >= SIZE_END:
        raise refused(title, "its files have more bytes than any disk")
    directories = {parent for path in found for parent in _parents(path)}
    if both := sorted(directories & found.keys()):
        raise refused(title, f"{both[0]!r} is both a file and a directory")
    return tuple(found[path] for path in sorted(found))


def refused(title: str, why: str) -> errors.FailedPrecondition:
    """Return the error for a listing that nothing is fetched by."""
    return errors.FailedPrecondition(
        f"the listing of {title} is not used: {why}; have whoever publishes it mend that, "
        "or name single files"
    )


def unlisted(title: str) -> errors.PermissionDenied:
    """Return the error for a directory whose origin answers 403, as many do that list none."""
    return errors.PermissionDenied(
        f"{title}: the origin answers 403: it does not list this directory, or not with these "
        "credentials; have whoever runs it put a ckptd-manifest.json there or switch its index on, "
        "name single files, or give other credentials in the URL"
    )


def wrong_path(path: str) -> str:
    """Say what is wrong with a relative path; empty if nothing is."""
    parts = path.split("/")
    try:
        is_long = len(path.encode()) > PATH_MAX_BYTES or any(
            len(part.encode()) > NAME_MAX_BYTES for part in parts
        )
    except UnicodeEncodeError:
        return "is no text"
    if is_long:
        return "is too long"
    if len(parts) > DEPTH_MAX:
        return f"is more than {DEPTH_MAX} directories deep"
    if any(part in {"", ".", ".."} or not part.isprintable() for part in parts):
        return "is no plain relative path"
    return ""


def child(directory: str, path: str) -> str:
    """Return the URL of the file *path* below the URL *directory*, asked for with the same right.

    User, password and query come along: where a query grants access, it does so to what is below.
    """
    parts = urlsplit(directory)
    return urlunsplit(parts._replace(path=parts.path + quote(path, safe="/"), fragment=""))


def _parents(path: str) -> Iterable[str]:
    at = path.find("/")
    while at >= 0:
        yield path[:at]
        at = path.find("/", at + 1)
