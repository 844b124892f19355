"""Whether a file is as long as it says of itself; pure, and it reads little.

A truncated upload has a truncated length at its origin, so no transport check finds it: a loader
maps it and reads zeros. The common formats of checkpoints say how long they are.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

from ckptd_daemon.transfer import gguf

ReadAt = Callable[[int, int], bytes]
"""`(offset, length)` to the bytes there; fewer where the file ends."""

SAFETENSORS_HEADER_MAX_BYTES = 100_000_000  # of the reference implementation
READ_MAX_BYTES = 16 << 20  # a header beyond that is taken at its word
_SAFETENSORS, _GGUF = ".safetensors", ".gguf"
_ZIP_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".zip", ".npz", ".pt2", ".keras")
_ZIP_MAGIC = b"PK\x03\x04"
_LFS_POINTER = b"version https://git-lfs"
_END = struct.Struct("<4s4H2IH")  # of central directory
_END_MAGIC = b"PK\x05\x06"
_LOCATOR = struct.Struct("<4sIQI")
_LOCATOR_MAGIC = b"PK\x06\x07"
_END64 = struct.Struct("<4sQ2H2I4Q")
_END64_MAGIC = b"PK\x06\x06"
_COMMENT_MAX_BYTES = 0xFFFF


def is_known(name: str) -> bool:
    """Whether the file called *name* may be of a format that tells how long it is."""
    return name.lower().endswith((_SAFETENSORS, _GGUF, *_ZIP_SUFFIXES))


def telling(name: str, size_bytes: int) -> list[tuple[int, int]]:
    """Return the bytes of the file called *name* that are looked at first, from and up to."""
    end = min(size_bytes, len(_ZIP_MAGIC))
    is_zip = name.lower().endswith(_ZIP_SUFFIXES)
    return [(0, end), (_tail_at(size_bytes), size_bytes)] if is_zip else [(0, end)]


def complaint(name: str, size_bytes: int, read_at: ReadAt) -> str | None:
    """Say what is wrong with the file called *name*, if its format tells; None if nothing is."""
    lower = name.lower()
    found = None
    if lower.endswith(_SAFETENSORS):
        found = _safetensors(size_bytes, read_at)
    elif lower.endswith(_GGUF):
        found = gguf.complaint(size_bytes, read_at)
    elif lower.endswith(_ZIP_SUFFIXES):
        found = _zip(size_bytes, read_at, must_be=lower.endswith(".zip"))
    return None if found is None else found + _instead(read_at)


def _instead(read_at: ReadAt) -> str:
    """Say what it is rather, where that is often met."""
    head = read_at(0, 64).lstrip()
    if head.startswith(_LFS_POINTER):
        return " (it is the pointer of Git LFS, not the file)"
    if head.lower().startswith((b"<!doctype", b"<html")):
        return " (it is a web page)"
    return ""


def _safetensors(size_bytes: int, read_at: ReadAt) -> str | None:
    head = read_at(0, 8)
    if len(head) < 8:
        return f"a safetensors file has at least 8 bytes, and this one {size_bytes}"
    header_bytes = int.from_bytes(head, "little")
    if header_bytes > SAFETENSORS_HEADER_MAX_BYTES:
        return f"it is no safetensors file: its header would have {header_bytes} bytes"
    if 8 + header_bytes > size_bytes:
        return f"the origin has only {size_bytes} of {8 + header_bytes} bytes of its header alone"
    if header_bytes > READ_MAX_BYTES:
        return None
    try:
        extents = _extents(json.loads(read_at(8, header_bytes).decode()))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return "its safetensors header cannot be read"
    at = 0
    for start, end in extents:
        if start != at or end < start:
            return f"the tensors in its header do not follow each other at byte {at}"
        at = end
    said = 8 + header_bytes + at
    if size_bytes < said:
        return f"the origin has only {size_bytes} of the {said} bytes that its header speaks of"
    if size_bytes > said:
        return f"by its header it ends at {said}, and the origin has {size_bytes} bytes"
    return None


def _extents(header: dict[str, Any]) -> list[tuple[int, int]]:
    """Return where the tensors lie, in order."""
    extents = []
    for name, tensor in header.items():
        if name != "__metadata__":
            start, end = tensor["data_offsets"]
            extents.append((int(start), int(end)))
    return sorted(extents)


def _zip(size_bytes: int, read_at: ReadAt, *, must_be: bool) -> str | None:
    """Judge an archive by its directory, which is at its end."""
    head = read_at(0, len(_ZIP_MAGIC))
    starts_as_zip = head == _ZIP_MAGIC
    if not starts_as_zip and not must_be:
        return None  # a legacy pickle, or something else altogether
    tail_at = _tail_at(size_bytes)
    tail = read_at(tail_at, size_bytes - tail_at)
    at = tail.rfind(_END_MAGIC)
    while at >= 0:
        end = tail[at : at + _END.size]
        left = len(tail) - at
        if _is_end(tail_at + at, end, left, read_at, has_prefix=not starts_as_zip):
            return None
        at = tail.rfind(_END_MAGIC, 0, at)
    return (
        "it is a zip archive without the directory that ends one: "
        f"the {size_bytes} bytes that the origin has are not all of it"
    )


def _tail_at(size_bytes: int) -> int:
    """Return where the end of the directory is looked for."""
    return max(0, size_bytes - _END.size - _COMMENT_MAX_BYTES)


def _is_end(at: int, end: bytes, left: int, read_at: ReadAt, *, has_prefix: bool) -> bool:
    """Tell whether *end*, at *at* with *left* bytes up to the end, is the end of an archive."""
    if len(end) < _END.size:
        return False
    _, _, _, _, count, length, offset, comment = _END.unpack(end)
    if left < _END.size + comment:
        return False
    directory_end = at
    if 0xFFFFFFFF in (length, offset) or count == 0xFFFF:
        found = _end64(at, read_at, has_prefix=has_prefix)
        if found is not None:
            directory_end, count, length, offset = found
    start = directory_end - length
    if start < 0 or offset > start or (offset != start and not has_prefix):
        return False
    return count == 0 or read_at(start, 4) == b"PK\x01\x02"


def _end64(at: int, read_at: ReadAt, *, has_prefix: bool) -> tuple[int, int, int, int] | None:
    """Return where the directory ends, its entries, length and offset, by the 64-bit records."""
    if at < _LOCATOR.size + _END64.size:
        return None
    magic, _, said_at, _ = _LOCATOR.unpack(read_at(at - _LOCATOR.size, _LOCATOR.size))
    where = at - _LOCATOR.size - _END64.size if has_prefix else said_at
    if magic != _LOCATOR_MAGIC or where > at - _LOCATOR.size - _END64.size:
        return None
    record = _END64.unpack(read_at(where, _END64.size))
    return (where, record[7], record[8], record[9]) if record[0] == _END64_MAGIC else None
