"""The journal of a partial: what is being fetched, and which of its chunks are on the disk; pure.

A line of text (checksum, space, JSON) describes the object; then one record of 12 bytes per
chunk: index, CRC32C of the chunk, CRC32C of these eight bytes, all little-endian. A journal is
believed up to its first damage.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

from ckptd_proto.crc import crc32c

FORMAT = 1
_RECORD = struct.Struct("<II")
_CHECK = struct.Struct("<I")
RECORD_BYTES = _RECORD.size + _CHECK.size


@dataclass(frozen=True, slots=True)
class Header:
    """The object version that a partial will become, and how it is cut."""

    object_id: str
    title: str
    version: str
    name: str
    size_bytes: int | None
    chunk_bytes: int
    is_resumable: bool
    """Its version names the bytes strongly enough to go on in another life of the daemon."""

    def extent(self, index: int) -> tuple[int, int]:
        """Return where chunk *index* starts and ends."""
        end = (index + 1) * self.chunk_bytes
        return index * self.chunk_bytes, end if self.size_bytes is None else min(
            end, self.size_bytes
        )

    @property
    def chunk_count(self) -> int:
        """How many chunks there are; 0 while the size is unknown."""
        return -(-(self.size_bytes or 0) // self.chunk_bytes)


@dataclass(frozen=True, slots=True)
class Journal:
    """What a journal says, and how much of the file says it."""

    header: Header
    chunks: dict[int, int]
    valid_bytes: int


def encode_header(header: Header) -> bytes:
    """Return the first line of a journal."""
    fields = {
        "format": FORMAT,
        "object": header.object_id,
        "title": header.title,
        "version": header.version,
        "name": header.name,
        "size_bytes": header.size_bytes,
        "chunk_bytes": header.chunk_bytes,
        "resumable": header.is_resumable,
    }
    text = json.dumps(fields).encode()
    return b"%08x %b\n" % (crc32c(text), text)


def encode_record(index: int, crc: int) -> bytes:
    """Return the record that says chunk *index* is on the disk."""
    body = _RECORD.pack(index, crc)
    return body + _CHECK.pack(crc32c(body))


class FormatError(Exception):
    """A journal is whole, and of a format that this version does not read."""

    def __init__(self, found: object) -> None:
        super().__init__(f"has format {found}, and this version reads {FORMAT}")


def parse(data: bytes) -> Journal | None:
    """Return what *data* says; None if not even its header is whole. Raises `FormatError`."""
    line, newline, records = data.partition(b"\n")
    header = _parse_header(line) if newline else None
    if header is None:
        return None
    chunks: dict[int, int] = {}
    at = 0
    while (record := records[at : at + RECORD_BYTES]) and len(record) == RECORD_BYTES:
        body, check = record[: _RECORD.size], record[_RECORD.size :]
        index, crc = _RECORD.unpack(body)
        is_outside = header.size_bytes is not None and index >= header.chunk_count
        if is_outside or _CHECK.unpack(check)[0] != crc32c(body):
            break
        chunks[index] = crc
        at += RECORD_BYTES
    return Journal(header, chunks, len(line) + 1 + at)


def _parse_header(line: bytes) -> Header | None:
    check, _, text = line.partition(b" ")
    if check != b"%08x" % crc32c(text):
        return None
    fields = json.loads(text)  # ours, for its checksum is right
    if fields["format"] != FORMAT:
        raise FormatError(fields["format"])
    try:
        return Header(
            object_id=fields["object"],
            title=fields["title"],
            version=fields["version"],
            name=fields["name"],
            size_bytes=fields["size_bytes"],
            chunk_bytes=fields["chunk_bytes"],
            is_resumable=fields["resumable"],
        )
    except KeyError:  # of a version from before the first release
        return None
