"""CRC32C of pieces put together: that of the whole, without reading it again; pure.

A CRC is the remainder of a polynomial over GF(2), so appending n bytes multiplies it by x^8n.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, the lowest power in the highest bit
_ONE = 1 << 31
_X = 1 << 30


def combined(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC32C of some bytes followed by *second_bytes* others, given those of each."""
    return _product(_shift(second_bytes), first) ^ second


def whole(pieces: Iterable[tuple[int, int]]) -> int:
    """Return the CRC32C of pieces in a row, each given by its CRC32C and its size in bytes."""
    crc = 0
    for piece_crc, size_bytes in pieces:
        crc = combined(crc, piece_crc, size_bytes)
    return crc


def _product(one: int, other: int) -> int:
    """Multiply two polynomials modulo Castagnoli's."""
    product = 0
    while one:
        if one & _ONE:
            product ^= other
        one = (one << 1) & 0xFFFFFFFF
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
    return product


@lru_cache(maxsize=64)  # files are cut into chunks of one size, and blocks of a few
def _shift(size_bytes: int) -> int:
    """Return x to the power of 8 * *size_bytes*, by squaring."""
    shift, square = _ONE, _X
    exponent = 8 * size_bytes
    while exponent:
        if exponent & 1:
            shift = _product(square, shift)
        square = _product(square, square)
        exponent >>= 1
    return shift
