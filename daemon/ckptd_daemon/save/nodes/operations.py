"""What the daemons of one attempt may do to the directory that all of them share. Pure."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from ckptd_proto import errors

T = TypeVar("T")


class Failed(Exception):
    """The place could not do it, or nobody knows whether it did."""

    def __init__(self, failure: errors.CkptdError) -> None:
        super().__init__(str(failure))
        self.failure = failure


class Renamed(Enum):
    """What came of a rename."""

    DONE = "done"
    MISSING = "missing"
    TAKEN = "taken"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True)
class Exists:
    """Is it there? A bool."""

    path: Path


@dataclass(frozen=True, slots=True)
class Read:
    """The content of a file; None if it is not there."""

    path: Path


@dataclass(frozen=True, slots=True)
class Make:
    """Make a directory and its missing parents; it may be there."""

    path: Path


@dataclass(frozen=True, slots=True)
class Write:
    """Have the file hold *data*, durably: the old or the new, whole. False without its directory."""

    path: Path
    data: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """The same, unless the file is there: then that stays."""

    path: Path
    data: bytes


@dataclass(frozen=True, slots=True)
class Rename:
    """Give a directory another name, unless something is there: a `Renamed`."""

    src: Path
    dst: Path


@dataclass(frozen=True, slots=True)
class Exchange:
    """Swap two directories in one step: a `Renamed`."""

    one: Path
    other: Path


@dataclass(frozen=True, slots=True)
class Refresh:
    """Believe nothing any more of the names in a directory: a network filesystem remembers them."""

    path: Path


@dataclass(frozen=True, slots=True)
class Sync:
    """Make the entries of a directory durable."""

    path: Path


@dataclass(frozen=True, slots=True)
class Sweep:
    """Delete, when there is time; nobody needs it."""

    path: Path


@dataclass(frozen=True, slots=True)
class Persist:
    """Make this daemon's images durable in the directory: the receipts; None without it."""

    path: Path
    aside: str
    """What they are written into there before they have their names. Nobody else calls anything so,
    and what is there already an earlier life of this daemon has left."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Let so many seconds pass."""

    seconds: float


Op = (
    Exists
    | Read
    | Make
    | Write
    | Note
    | Rename
    | Exchange
    | Refresh
    | Sync
    | Sweep
    | Persist
    | Wait
)
Steps = Generator[Op, Any, T]
"""Yields operations, is sent what came of each, and leads somewhere."""
