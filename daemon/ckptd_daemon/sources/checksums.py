"""What origins say in headers that the whole object hashes to; pure.

Only what can be checked while the bytes are hot is read: SHA-256 and CRC32C. MD5 and CRC64NVME
would cost a pass of their own.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass

_REPR_DIGEST = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/=]+):", re.ASCII)  # RFC 9530
_DIGEST = re.compile(r"(?:^|,)\s*sha-256=([A-Za-z0-9+/=]+)", re.ASCII | re.IGNORECASE)  # RFC 3230
_GOOGLE = re.compile(r"(?:^|,)\s*crc32c=([A-Za-z0-9+/=]+)", re.ASCII)
_SHA256_BYTES = 32
_CRC_BYTES = 4


@dataclass(frozen=True, slots=True)
class Checksums:
    """Of a whole object; None is what nobody states."""

    sha256: str | None = None
    """Lower-case hex."""
    crc32c: int | None = None


NOTHING_STATED = Checksums()


def stated(headers: Iterable[tuple[str, str]], *, is_whole: bool) -> Checksums:
    """Return what the headers of a reply state; *is_whole* if its body was the whole object.

    A range's reply is believed only where the header is of the whole object by definition; many
    servers send a `Digest` of the range instead.
    """
    joined: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        joined[lower] = f"{joined[lower]}, {value}" if lower in joined else value
    sha256 = _found(_REPR_DIGEST, joined.get("repr-digest", ""))
    if is_whole:
        sha256 = sha256 or _found(_DIGEST, joined.get("digest", ""))
    crc32c = None
    if joined.get("x-goog-stored-content-encoding", "identity") == "identity":
        crc32c = _found(_GOOGLE, joined.get("x-goog-hash", ""))
    if joined.get("x-amz-checksum-type") == "FULL_OBJECT":  # else it is of the parts' checksums
        sha256 = sha256 or joined.get("x-amz-checksum-sha256")
        crc32c = crc32c or joined.get("x-amz-checksum-crc32c")
    digest = _decoded(sha256, _SHA256_BYTES)
    crc = _decoded(crc32c, _CRC_BYTES)
    return Checksums(
        None if digest is None else digest.hex(),
        None if crc is None else int.from_bytes(crc, "big"),
    )


def _found(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    return None if match is None else match[1]


def _decoded(text: str | None, length: int) -> bytes | None:
    """Return the *length* bytes that base64 *text* stands for; None if it does not."""
    if text is None:
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if len(data) == length else None
