"""What a file that is here already hashes to; blocks."""

from __future__ import annotations

import hashlib
from io import FileIO

from ckptd_proto.crc import crc32c

BLOCK_BYTES = 1 << 20


def read(file: FileIO, chunk_bytes: int) -> tuple[str, tuple[int, ...]]:
    """Return the SHA-256 of *file*, and the CRC32C of each of its chunks."""
    digest, crcs, block = hashlib.sha256(), [], memoryview(bytearray(BLOCK_BYTES))
    at = crc = 0
    while got := file.readinto(block[: min(BLOCK_BYTES, chunk_bytes - at)]):
        digest.update(block[:got])
        crc = crc32c(block[:got], crc)
        at += got
        if at == chunk_bytes:
            crcs.append(crc)
            at = crc = 0
    return digest.hexdigest(), (*crcs, crc) if at else tuple(crcs)
