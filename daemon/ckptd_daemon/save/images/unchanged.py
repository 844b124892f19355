"""Images that an earlier step has already, byte for byte: given another name, not written again.

Checksums only tell what is worth a look: what is taken for the same has been read and compared.
"""

from __future__ import annotations

import ctypes
import json
import logging
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ckptd_daemon.save.arena.slots import SlotFile
from ckptd_daemon.save.attempts import Image
from ckptd_daemon.save.commit.proof import CHUNK_BYTES
from ckptd_daemon.save.places import MANIFEST, SUMS, Place, step_number
from ckptd_daemon.store import durable
from ckptd_proto import errors
from ckptd_proto.crc import crc32c

logger = logging.getLogger(__name__)

_libc = ctypes.CDLL(None)
_libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]  # without the GIL

_WORTH_BYTES: Final = 64 << 10  # what is smaller is written faster than compared


def earlier_step(place: Place, step: int) -> Path | None:
    """Return the committed step before *step*; None if there is none."""
    try:
        numbers = [step_number(path.name) for path in place.directory.iterdir()]
    except OSError:
        return None
    for number in sorted((n for n in numbers if n is not None and n < step), reverse=True):
        if (place.step(number) / MANIFEST).exists():
            return place.step(number)
    return None


def link(
    image: Image, memory: SlotFile, offset: int, earlier: Path, directory: Path
) -> list[int] | None:
    """Give the image of *earlier* a name in *directory* too, if it is what *memory* has at *offset*.

    Returns its checksums; None if it is another, or cannot be had: then it is to be written.
    """
    if image.size_bytes < _WORTH_BYTES:
        return None
    there, here = earlier / image.name, directory / image.name
    try:
        crcs = _known(there, image)
        if crcs is None or not _is_listed(image, memory, offset, crcs):
            return None
        source, _ = durable.open_direct(there, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            if not _is_same(image, memory, offset, source):
                return None
            durable.link(there, here)
            if not os.path.samestat(os.fstat(source), here.stat()):  # replaced while we looked
                here.unlink()
                return None
        finally:
            os.close(source)
    except (OSError, errors.CkptdError) as error:
        logger.info("%s is written, not linked: %s", here, error)
        here.unlink(missing_ok=True)
        return None
    return crcs


def _known(path: Path, image: Image) -> list[int] | None:
    """Return the checksums of *path*, None if it is no image of that length."""
    try:
        sums = json.loads(path.with_name(path.name + SUMS).read_bytes())
        known = (sums["format"], sums["size_bytes"], sums["chunk_bytes"])
        crcs = [int(crc) for crc in sums["crc32c"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    count = -(-image.size_bytes // CHUNK_BYTES)
    is_of = known == (1, image.size_bytes, CHUNK_BYTES) and len(crcs) == count
    return crcs if is_of and path.stat().st_size == image.size_bytes else None


def _is_listed(image: Image, memory: SlotFile, offset: int, crcs: list[int]) -> bool:
    """Say whether the memory has these checksums; looks at both ends first."""
    chunks = range(len(crcs))
    for chunk in dict.fromkeys((chunks[0], chunks[-1], *chunks)):
        with _window(image, memory, offset, chunk) as staged:
            if crc32c(staged) != crcs[chunk]:
                return False
    return True


def _is_same(image: Image, memory: SlotFile, offset: int, source: int) -> bool:
    """Say whether the memory holds what the file *source* does, which is read past the cache."""
    buffer = mmap.mmap(-1, CHUNK_BYTES)  # freed with its last view: an error may hold one
    block = memoryview(buffer)
    for chunk in range(-(-image.size_bytes // CHUNK_BYTES)):
        with _window(image, memory, offset, chunk) as staged:
            size = len(staged)
            if durable.pread_all(source, block, chunk * CHUNK_BYTES) < size:
                return False
            if _libc.memcmp(_address(staged), _address(buffer), size) != 0:
                return False
    return True


def _address(memory: mmap.mmap | memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@contextmanager
def _window(
    image: Image, memory: SlotFile, offset: int, chunk: int
) -> Iterator[mmap.mmap | memoryview]:
    """Give a chunk of the image, to be compared: mapped, or a copy where it must not be."""
    start = chunk * CHUNK_BYTES
    size = min(CHUNK_BYTES, image.size_bytes - start)
    if memory.view is None:
        with memory.reading(offset + start, size) as part:
            yield part
        return
    memory.check_whole()
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    with mmap.mmap(memory.fd, size, flags, offset=offset + start) as window:
        yield window
