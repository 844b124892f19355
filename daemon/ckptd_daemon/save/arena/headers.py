"""The head of an arena slot: all that a later daemon needs to finish what is staged. Pure.

It lies in a file of its own that no client ever gets, for what a client can write is not to be
believed. Layout, little-endian: magic (8 bytes), format (u32), CRC32C of the record (u32), length
of the record (u64), the record as JSON. The magic says what the slot is: taken by a rank that may
write into it, sealed, or kept since its attempt was committed. Zeros: nobody's.

Format 1 was the same record of a sealed slot, at the start of the slot itself.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, replace
from typing import Any, Final

from ckptd_daemon.save.attempts import Attempt, Image, JobKey
from ckptd_daemon.save.members import Members
from ckptd_daemon.save.places import (
    Place,
    check_image_name,
    check_image_names,
    check_metrics,
    check_name,
    checked_root,
)
from ckptd_daemon.sessions import Process
from ckptd_proto import errors
from ckptd_proto.crc import crc32c

PAGE_BYTES: Final = 4096
FORMAT: Final = 2
IN_SLOT_FORMAT: Final = 1
KEPT: Final = b"CKPTKEPT"
_TAKEN: Final = b"CKPTTAKE"
_SEALED: Final = b"CKPTSLOT"
_PREFIX: Final = struct.Struct("<8sIIQ")
_RECORD_BYTES_MAX: Final = 64 << 20  # no sane plan is longer; garbage may say anything

MARK: Final = _PREFIX.pack(_SEALED, FORMAT, 0, 0)
"""Begins a sealed slot, for daemons that look there: they leave it alone as newer than they are."""


class NewerFormat(Exception):
    """The slot was sealed by a daemon newer than this one."""


class Unreadable(Exception):
    """The record is whole, and not one that this daemon can do anything with."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Who may write into a slot that is not sealed, and for which save."""

    attempt: str
    rank: int
    holder: str
    """The key of the `Holder`."""
    process: Process

    def is_of_same(self, other: Taken) -> bool:
        """Say whether the same rank has taken both, in one process as far as can be seen."""
        mine, theirs = self.process, other.process
        is_unseen = mine.pid == theirs.pid == 0 and mine.uid == theirs.uid
        return self.holder == other.holder and (mine == theirs or is_unseen)


@dataclass(frozen=True, slots=True)
class Laid:
    """An image and where it starts within its slot."""

    image: Image
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """What one rank has sealed."""

    attempt: Attempt
    """As the rank saw it: OPEN, without what others sealed; plan and metrics from rank 0."""
    rank: int
    laid: tuple[Laid, ...]
    is_kept: bool = False
    """The attempt is committed: there is nothing to finish, and something to read."""


def padded(size_bytes: int) -> int:
    """Return *size_bytes* rounded up to whole pages."""
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES


def layout(images: tuple[Image, ...]) -> tuple[tuple[Laid, ...], int]:
    """Return where each image goes, behind a page and on whole pages, and the slot's size."""
    offset = PAGE_BYTES
    laid = []
    for image in images:
        laid.append(Laid(image, offset))
        offset += padded(image.size_bytes)
    return tuple(laid), offset


def sealed_by(rank: int, attempt: Attempt, laid: tuple[Laid, ...]) -> Header:
    """Return the header of *rank*: only that of rank 0 carries plan and metrics."""
    return Header(attempt if rank == 0 else replace(attempt, plan=None, metrics={}), rank, laid)


def encode(header: Header) -> bytes:
    """Return the head of a slot that is sealed; raises `InvalidArgument` if it is too long."""
    attempt, job = header.attempt, header.attempt.job
    record = {
        "attempt": attempt.id,
        "sequence": attempt.sequence,
        "step": attempt.step,
        "plan_hash": attempt.plan_hash,
        "replaces": attempt.replaces,
        "members": attempt.members
        and [attempt.members.names, attempt.members.of_rank, attempt.members.own],
        "job": job.id,
        "root": str(job.place.root),
        "root_at": list(job.root_at),
        "experiment": job.place.experiment,
        "run": job.place.run,
        "incarnation": job.incarnation,
        "world_size": job.world_size,
        "uid": job.uid,
        "rank": header.rank,
        "images": [[item.image.name, item.image.size_bytes, item.offset] for item in header.laid],
        "plan": attempt.plan and [[image.name, image.size_bytes] for image in attempt.plan],
        "metrics": dict(attempt.metrics),
    }
    return _packed(_SEALED, record)


def encode_taken(taken: Taken) -> bytes:
    """Return the head of a slot that a rank may write into; never more than a page."""
    process = taken.process
    record = {
        "attempt": taken.attempt,
        "rank": taken.rank,
        "holder": taken.holder,
        "writer": [process.pid, process.started, process.uid],
    }
    return _packed(_TAKEN, record)


def _packed(magic: bytes, record: dict[str, Any]) -> bytes:
    text = json.dumps(record).encode()
    if len(text) > _RECORD_BYTES_MAX:
        text_ = f"the plan takes {len(text)} bytes and {_RECORD_BYTES_MAX} are allowed"
        raise errors.InvalidArgument(f"{text_}; use fewer images")
    return _PREFIX.pack(magic, FORMAT, crc32c(text), len(text)) + text


def decode(data: bytes) -> Header | Taken | None:
    """Return what a head that starts with *data* says; None if it is nobody's, or torn.

    Raises `NewerFormat`; `Unreadable` if the record is whole and makes no sense.
    """
    if len(data) < _PREFIX.size:
        return None
    magic, form, checksum, length = _PREFIX.unpack_from(data)
    if magic not in (_TAKEN, _SEALED, KEPT):
        return None
    if form > FORMAT:
        raise NewerFormat(form)
    text = data[_PREFIX.size : _PREFIX.size + length]
    if length > _RECORD_BYTES_MAX or len(text) != length or crc32c(text) != checksum:
        return None
    try:
        record = json.loads(text)
        return _taken(record) if magic == _TAKEN else _header(record, is_kept=magic == KEPT)
    except errors.CkptdError as error:
        raise Unreadable(str(error)) from error
    except Exception as error:  # whatever it is: a slot must not keep the daemon from starting
        raise Unreadable(repr(error)) from error


def decode_in_slot(data: bytes) -> Header | None:
    """Return what an older daemon has sealed in a slot that starts with *data*; else as `decode`."""
    if len(data) >= _PREFIX.size and _PREFIX.unpack_from(data)[1] == FORMAT:
        return None  # nothing but our own mark: its head is gone
    found = decode(data)
    return found if isinstance(found, Header) else None


def needed_bytes(start: bytes) -> int:
    """Return how much of what begins with *start* `decode` wants to see."""
    if len(start) < _PREFIX.size or not start.startswith((_TAKEN, _SEALED, KEPT)):
        return 0
    length: int = _PREFIX.unpack_from(start)[3]
    return _PREFIX.size + min(length, _RECORD_BYTES_MAX)


def end_of(header: Header) -> int:
    """Return where the last image in the slot ends, in whole pages."""
    ends = (laid.offset + padded(laid.image.size_bytes) for laid in header.laid)
    return max(ends, default=PAGE_BYTES)


def _taken(record: dict[str, Any]) -> Taken:
    pid, started, uid = map(int, record["writer"])
    process = Process(pid, started, uid)
    return Taken(str(record["attempt"]), int(record["rank"]), str(record["holder"]), process)


def _header(record: dict[str, Any], *, is_kept: bool) -> Header:
    """Return what was sealed, all of it checked once more, as when the ranks said it."""
    place = Place(checked_root(record["root"]), record["experiment"], record["run"])
    check_name("experiment", place.experiment)
    check_name("run", place.run)
    check_metrics(dict(record["metrics"]))
    device, inode = record["root_at"]
    job = JobKey(
        id=record["job"],
        place=place,
        incarnation=record["incarnation"],
        world_size=_count(record["world_size"]),
        uid=_count(record["uid"]),
        root_at=(device, inode),
    )
    plan = record["plan"]
    attempt = Attempt(
        id=_file_name(record["attempt"]),
        job=job,
        sequence=_count(record["sequence"]),
        step=_count(record["step"]),
        plan_hash=record["plan_hash"],
        replaces=record["replaces"],
        members=_members(record["members"]),
        plan=None if plan is None else tuple(_image(name, size) for name, size in plan),
        metrics=record["metrics"],
    )
    laid = tuple(Laid(_image(name, size), _at(offset)) for name, size, offset in record["images"])
    check_image_names([one.image.name for one in laid])
    rank = _count(record["rank"])
    if rank not in attempt.ranks:
        raise ValueError(f"rank {rank} is none of {attempt.ranks}")
    return Header(attempt, rank, laid, is_kept)


def _image(name: str, size_bytes: int) -> Image:
    check_image_name(name)
    return Image(name, _count(size_bytes))


def _file_name(text: str) -> str:
    check_name("attempt's", text)
    return text


def _at(offset: int) -> int:
    if _count(offset) < PAGE_BYTES or offset % PAGE_BYTES:
        raise ValueError(f"an image begins at {offset}")
    return offset


def _count(number: int) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"{number!r} is not a whole number from 0")
    return number


def _members(record: list[Any] | None) -> Members | None:
    if record is None:
        return None
    names, of_rank, own = record
    return Members.told(names, of_rank, own_name=names[own], world_size=len(of_rank))
