"""Whether a file is as long as its format says: asked early, and again before it is published.

The chunks that tell are fetched before all others, so that an upload that was cut short costs
these, and not the hours that the rest of it takes.
"""

from __future__ import annotations

import logging
import os
from functools import partial as bound

from anyio import to_thread

from ckptd_daemon.sources.source import Object
from ckptd_daemon.store.partials import DATA, Partial
from ckptd_daemon.transfer import formats
from ckptd_daemon.transfer.demand import Demand
from ckptd_proto import errors

logger = logging.getLogger(__name__)

FEW_CHUNKS = 2  # nothing is saved by knowing early of so few


class UnsoundError(Exception):
    """What has come of an object is no file of its kind, unless it was damaged on its way."""


class _MissingError(Exception):
    """It cannot be told before these chunks are here."""

    def __init__(self, chunks: range) -> None:
        super().__init__()
        self.chunks = chunks


def require_sound(obj: Object, partial: Partial, size_bytes: int, *, is_stated: bool) -> None:
    """Raise `DataLoss` if the file is not as long as its format says; blocks on the disk.

    If *is_stated*, its SHA-256 is what somebody who knows the file has said: then it is what it is
    meant to be, whatever its name suggests (a volume of a split archive, say).
    """
    fd = os.open(partial.path / DATA, os.O_RDONLY | os.O_CLOEXEC)
    try:

        def read_at(at: int, count: int) -> bytes:
            return os.pread(fd, max(0, min(count, size_bytes - at)), at)

        complaint = formats.complaint(obj.name, size_bytes, read_at)
    finally:
        os.close(fd)
    if complaint is None:
        return
    if is_stated:
        logger.warning("%s is as its stated SHA-256 wants it, and kept: %s", obj.title, complaint)
        return
    text = unsound(obj, complaint)
    raise errors.DataLoss(text) from UnsoundError(text)


def is_telling(obj: Object, partial: Partial) -> bool:
    """Whether it is worth asking before everything is here."""
    return partial.header.chunk_count > FEW_CHUNKS and formats.is_known(obj.name)


def want_telling(obj: Object, partial: Partial, demand: Demand) -> None:
    """Have what tells fetched first: before any stream has begun with something else."""
    header = partial.header
    for start, end in formats.telling(obj.name, header.size_bytes or 0):
        demand.want(_chunks(start, end, header.chunk_bytes), partial)


async def watch(obj: Object, partial: Partial, demand: Demand) -> None:
    """Raise `UnsoundError` as soon as the file is known to be wrong."""
    while True:
        lives = partial.lives
        try:
            complaint = await to_thread.run_sync(bound(_complaint, obj, partial))
        except _MissingError as missing:
            demand.want(missing.chunks, partial)
            while any(chunk not in partial.landed for chunk in missing.chunks):
                await demand.moved()
            continue
        if partial.lives != lives:  # what was read has been thrown away
            continue
        if complaint is not None:
            raise UnsoundError(unsound(obj, complaint))
        return


def unsound(obj: Object, complaint: str) -> str:
    """Say what to do about a file that is none of its kind."""
    return (
        f"{obj.title} is no sound file of its kind, and is not handed out: {complaint}; "
        "ask whoever publishes it to upload it again, or state its SHA-256 if it is meant to be so"
    )


def _chunks(start: int, end: int, chunk_bytes: int) -> range:
    return range(start // chunk_bytes, -(-end // chunk_bytes)) if start < end else range(0)


def _complaint(obj: Object, partial: Partial) -> str | None:
    """Ask the format, by what has landed; raises `_MissingError`."""
    header = partial.header
    size_bytes, chunk_bytes = header.size_bytes or 0, header.chunk_bytes
    if (fd := partial.reader()) is None:
        return None
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # beside it direct I/O is writing

        def read_at(at: int, count: int) -> bytes:
            end = min(at + count, size_bytes)
            chunks = _chunks(at, end, chunk_bytes)
            if any(chunk not in partial.landed for chunk in chunks):
                raise _MissingError(chunks)
            return os.pread(fd, max(0, end - at), at)

        return formats.complaint(obj.name, size_bytes, read_at)
    finally:
        os.close(fd)
