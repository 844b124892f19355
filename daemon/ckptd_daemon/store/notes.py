"""Notes of what the cache keeps: JSON that tells by itself whether it was damaged; pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ckptd_proto.crc import crc32c

CHECK = "check"


def encode(fields: Mapping[str, Any]) -> bytes:
    """Return *fields* as a note: one line of JSON, whose last field is the CRC32C of the others."""
    plain = {name: value for name, value in fields.items() if name != CHECK}
    return json.dumps(plain | {CHECK: _check(plain)}).encode()


def decode(data: bytes, *, format_: int) -> dict[str, Any]:
    """Return the fields of a note.

    Raises:
        ValueError: It is damaged.
        FormatError: It is of another format than *format_*, whatever that says of damage.
    """
    fields = json.loads(data)
    if isinstance(fields, dict):
        if (found := fields.get("format")) != format_:
            raise FormatError(found)
        if fields.pop(CHECK, None) == _check(fields):
            return fields
    raise ValueError("a damaged note")


class FormatError(Exception):
    """A note is of a format that this version does not read."""

    def __init__(self, found: object) -> None:
        super().__init__(f"has format {found}")
        self.found = found


def _check(fields: Mapping[str, Any]) -> int:
    return crc32c(json.dumps(fields).encode())
