"""The header of an arena slot: all that a later daemon needs to finish what is staged. Pure.

Layout, little-endian: magic (8 bytes), format (u32), CRC32C of the record (u32), length of the
record (u64), the record as JSON. A slot that is not sealed starts with zeros; the magic of one
whose attempt was committed since is another.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import crc32c

from ckptd_daemon.save.attempts import Attempt, Image, JobKey
from ckptd_daemon.save.members import Members
from ckptd_daemon.save.places import Place
from ckptd_proto import errors

PAGE_BYTES: Final = 4096
FORMAT: Final = 1
KEPT: Final = b"CKPTKEPT"
_MAGIC: Final = b"CKPTSLOT"
_PREFIX: Final = struct.Struct("<8sIIQ")
_RECORD_BYTES_MAX: Final = 64 << 20  # no sane plan is longer; garbage may say anything


class NewerFormat(Exception):
    """The slot was sealed by a daemon newer than this one."""


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


def region_bytes(world_size: int) -> int:
    """Return how much room a header needs in a world so large."""
    return PAGE_BYTES * 2 + padded(world_size * 256)


def layout(images: tuple[Image, ...], world_size: int) -> tuple[tuple[Laid, ...], int]:
    """Return where each image goes, behind the header and on whole pages, and the slot's size."""
    offset = region_bytes(world_size)
    laid = []
    for image in images:
        laid.append(Laid(image, offset))
        offset += padded(image.size_bytes)
    return tuple(laid), offset


def sealed_by(rank: int, attempt: Attempt, laid: tuple[Laid, ...]) -> Header:
    """Return the header of *rank*: only that of rank 0 carries plan and metrics."""
    return Header(attempt if rank == 0 else replace(attempt, plan=None, metrics={}), rank, laid)


def encode(header: Header) -> bytes:
    """Return the bytes that go to the start of the slot; raises `InvalidArgument` if too long."""
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
    text = json.dumps(record).encode()
    room = region_bytes(job.world_size) - _PREFIX.size
    if len(text) > room:
        text_ = f"the plan takes {len(text)} bytes and the header has {room}; use fewer images"
        raise errors.InvalidArgument(text_)
    return _PREFIX.pack(_MAGIC, FORMAT, crc32c.crc32c(text), len(text)) + text


def decode(data: bytes) -> Header | None:
    """Return what a slot that starts with *data* holds, None if it is not sealed or torn.

    Raises `NewerFormat`.
    """
    if len(data) < _PREFIX.size:
        return None
    magic, form, checksum, length = _PREFIX.unpack_from(data)
    if magic not in (_MAGIC, KEPT):
        return None
    if form > FORMAT:
        raise NewerFormat(form)
    text = data[_PREFIX.size : _PREFIX.size + length]
    if length > _RECORD_BYTES_MAX or len(text) != length or crc32c.crc32c(text) != checksum:
        return None
    return replace(_header(json.loads(text)), is_kept=magic == KEPT)


def needed_bytes(start: bytes) -> int:
    """Return how much of a slot that begins with *start* `decode` wants to see."""
    if len(start) < _PREFIX.size or not start.startswith((_MAGIC, KEPT)):
        return 0
    length: int = _PREFIX.unpack_from(start)[3]
    return _PREFIX.size + min(length, _RECORD_BYTES_MAX)


def _header(record: dict[str, Any]) -> Header:
    place = Place(Path(record["root"]), record["experiment"], record["run"])
    device, inode = record["root_at"]
    job = JobKey(
        id=record["job"],
        place=place,
        incarnation=record["incarnation"],
        world_size=record["world_size"],
        uid=record["uid"],
        root_at=(device, inode),
    )
    plan = record["plan"]
    attempt = Attempt(
        id=record["attempt"],
        job=job,
        sequence=record["sequence"],
        step=record["step"],
        plan_hash=record["plan_hash"],
        replaces=record["replaces"],
        members=_members(record["members"]),
        plan=None if plan is None else tuple(Image(name, size) for name, size in plan),
        metrics=record["metrics"],
    )
    laid = tuple(Laid(Image(name, size), offset) for name, size, offset in record["images"])
    return Header(attempt, record["rank"], laid)


def _members(record: list[Any] | None) -> Members | None:
    if record is None:
        return None
    names, of_rank, own = record
    return Members(tuple(names), tuple(of_rank), own)
