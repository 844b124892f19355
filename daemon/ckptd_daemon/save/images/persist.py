"""From the arena to files: every image written once, past the page cache, summed as it goes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from ckptd_daemon.save import threads
from ckptd_daemon.save.arena.headers import padded
from ckptd_daemon.save.arena.slots import SlotFile
from ckptd_daemon.save.attempts import Image
from ckptd_daemon.save.commit.proof import CHUNK_BYTES, Receipt
from ckptd_daemon.save.images import unchanged
from ckptd_daemon.save.images.writers import Writers
from ckptd_daemon.save.places import SUMS
from ckptd_daemon.store import durable
from ckptd_proto import errors
from ckptd_proto.crc import crc32c

BLOCK_BYTES: Final = 2 * CHUNK_BYTES  # per write; larger ones gain nothing
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Staged:
    """An image, and where in shared memory it lies."""

    image: Image
    memory: SlotFile
    offset: int


@dataclass(slots=True, eq=False)
class _File:
    """An image on its way to disk."""

    staged: Staged
    path: Path
    fd: int
    crcs: list[int]


async def persist(
    root: Path,
    directory: Path,
    images: Sequence[Staged],
    plan_hash: str,
    *,
    writers: Writers,
    on_written: Callable[[int], None],
    earlier: Sequence[Path] = (),
) -> list[Receipt]:
    """Write *images* into *directory* below *root*, made anew, each synced and with its checksums beside it.

    What one of the directories *earlier* has, byte for byte, is linked instead.
    *on_written* hears, in a writer's thread, of each block's bytes. Cancelled, it ends after the
    blocks in hand. Raises what the disk said, typed.
    """
    await threads.run(root, _make, directory)
    linked: dict[Image, Receipt] = {}

    def link(staged: Staged) -> None:
        image = staged.image
        for there in earlier:
            crcs = unchanged.link(image, staged.memory, staged.offset, there, directory)
            if crcs is not None:
                linked[image] = _sum(directory / image.name, image, crcs, plan_hash)
                on_written(image.size_bytes)
                return

    def write(file: _File, start: int) -> None:
        on_written(_write_block(file, start))

    if earlier:
        await writers.write(root, (partial(link, staged) for staged in images))
    rest = [staged for staged in images if staged.image not in linked]
    files = await threads.run(root, _begin, directory, rest)
    try:
        blocks = (partial(write, file, at) for file in files for at in _starts(file))
        await writers.write(root, blocks)
        receipts = await threads.run(root, _finish, directory, files, plan_hash)
        return [*linked.values(), *receipts]
    finally:
        for file in files:
            os.close(file.fd)


def _starts(file: _File) -> range:
    return range(0, file.staged.image.size_bytes, BLOCK_BYTES)


def _make(directory: Path) -> None:
    """Not its parent: if that is gone, somebody has given the attempt up."""
    with durable.explained(directory):
        directory.mkdir()


def _begin(directory: Path, images: Sequence[Staged]) -> list[_File]:
    need = sum(staged.image.size_bytes for staged in images)
    if (free := durable.free_bytes(directory.parent)) < need:
        text = f"the checkpoint takes {need} bytes and {directory.parent.parent} has {free} free"
        raise errors.ResourceExhausted(f"{text}; free some space", need_bytes=need, free_bytes=free)
    files: list[_File] = []
    try:
        for staged in images:
            files.append(_create(directory, staged))  # noqa: PERF401  what is open must be known
    except BaseException:
        for file in files:
            os.close(file.fd)
        raise
    return files


def _create(directory: Path, staged: Staged) -> _File:
    path = directory / staged.image.name
    fd, _ = durable.open_direct(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        durable.preallocate(fd, padded(staged.image.size_bytes))
    except BaseException:
        os.close(fd)
        raise
    return _File(staged, path, fd, [0] * -(-staged.image.size_bytes // CHUNK_BYTES))


def _write_block(file: _File, start: int) -> int:
    """Sum and write one block straight from shared memory; whole pages, the last one padded."""
    size = min(BLOCK_BYTES, file.staged.image.size_bytes - start)
    at = file.staged.offset + start
    with file.staged.memory.reading(at, padded(size)) as view:
        for chunk in range(0, size, CHUNK_BYTES):
            with view[chunk : min(chunk + CHUNK_BYTES, size)] as data:
                file.crcs[(start + chunk) // CHUNK_BYTES] = crc32c(data)
        durable.pwrite_all(file.fd, view, start)
    return size


def _finish(directory: Path, files: list[_File], plan_hash: str) -> list[Receipt]:
    receipts = [_seal(file, plan_hash) for file in files]
    durable.sync_dir(directory)
    return receipts


def _seal(file: _File, plan_hash: str) -> Receipt:
    image = file.staged.image
    with durable.explained(file.path):
        os.ftruncate(file.fd, image.size_bytes)
    durable.sync_file(file.fd)
    return _sum(file.path, image, file.crcs, plan_hash)


def _sum(path: Path, image: Image, crcs: list[int], plan_hash: str) -> Receipt:
    """Write the checksums of the image at *path* beside it."""
    record = {
        "format": _FORMAT,
        "size_bytes": image.size_bytes,
        "chunk_bytes": CHUNK_BYTES,
        "crc32c": crcs,
    }
    sums = json.dumps(record).encode()
    durable.write_new(path.with_name(path.name + SUMS), sums)
    return Receipt(image, plan_hash, hashlib.sha256(sums).hexdigest(), len(crcs))
