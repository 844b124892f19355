"""The header of a GGUF file: where its last tensor ends; pure, and it reads no tensor.

What this version does not know (a version, a type of value or of tensor) is never a complaint.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

_WINDOW_BYTES = 1 << 20
_HEADER_MAX_BYTES = 32 << 20  # vocabularies take megabytes
_DEPTH_MAX = 4  # of arrays in arrays
_DIMENSIONS_MAX = 16
_VERSIONS = (2, 3)
_ALIGNMENT = "general.alignment"
_ALIGNMENT_DEFAULT = 32
_STRING, _ARRAY = 8, 9
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# elements per block, bytes per block
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 36), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4),
    27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip


class _UnknownError(Exception):
    """It may be sound, and this version cannot tell."""


class _EndsError(Exception):
    """The header goes on where the file has ended."""


def complaint(size_bytes: int, read_at: Callable[[int, int], bytes]) -> str | None:
    """Say what is wrong with a GGUF file of *size_bytes*; None if nothing is known to be."""
    header = _Header(size_bytes, read_at)
    try:
        if header.take(4) != b"GGUF":
            return "it is no GGUF file: it does not start as one"
        end = header.end()
    except _EndsError:
        return f"the origin has only {size_bytes} bytes, and its header goes on after that"
    except _UnknownError:
        return None
    if end > size_bytes:
        return f"the origin has only {size_bytes} of the {end} bytes that its header speaks of"
    return None


class _Header:
    """Reads on and on, through a window."""

    def __init__(self, size_bytes: int, read_at: Callable[[int, int], bytes]) -> None:
        self._size_bytes = size_bytes
        self._read_at = read_at
        self._at = 0
        self._window = b""
        self._window_at = 0
        self._alignment = _ALIGNMENT_DEFAULT

    def end(self) -> int:
        """Return where the last tensor ends, as far as its type is known."""
        if self._u32() not in _VERSIONS:
            raise _UnknownError
        tensors, pairs = self._u64(), self._u64()
        for _ in range(pairs):
            self._pair()
        end = 0
        for _ in range(tensors):
            end = max(end, self._tensor_end())
        start = -(-self._at // self._alignment) * self._alignment
        return start + end if tensors else self._at

    def take(self, count: int) -> bytes:
        """Return the next *count* bytes, which are few."""
        at = self._at
        self._skip(count)
        if not self._window_at <= at <= self._at <= self._window_at + len(self._window):
            self._window = self._read_at(at, max(count, _WINDOW_BYTES))
            self._window_at = at
        piece = self._window[at - self._window_at : self._at - self._window_at]
        if len(piece) < count:
            raise _EndsError
        return piece

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > self._size_bytes:
            raise _EndsError
        if self._at > _HEADER_MAX_BYTES:
            raise _UnknownError

    def _u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def _u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def _pair(self) -> None:
        key_bytes = self._u64()
        is_alignment = key_bytes == len(_ALIGNMENT) and self.take(key_bytes) == _ALIGNMENT.encode()
        if key_bytes != len(_ALIGNMENT):
            self._skip(key_bytes)
        kind = self._u32()
        if is_alignment and kind == 4:
            self._alignment = self._u32() or _ALIGNMENT_DEFAULT
        else:
            self._skip_value(kind, _DEPTH_MAX)

    def _skip_value(self, kind: int, depth: int) -> None:
        if kind == _STRING:
            self._skip(self._u64())
        elif kind == _ARRAY and depth:
            inner, count = self._u32(), self._u64()
            if inner in _VALUE_BYTES:
                self._skip(count * _VALUE_BYTES[inner])
            else:
                for _ in range(count):
                    self._skip_value(inner, depth - 1)
        elif kind in _VALUE_BYTES:
            self._skip(_VALUE_BYTES[kind])
        else:
            raise _UnknownError

    def _tensor_end(self) -> int:
        self._skip(self._u64())
        dimensions = self._u32()
        if dimensions > _DIMENSIONS_MAX:
            raise _UnknownError
        shape = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions))
        kind, offset = self._u32(), self._u64()
        per_block, block_bytes = _BLOCKS.get(kind, (1, 0))
        blocks: int = math.prod(shape) // per_block
        return offset + blocks * block_bytes
