"""What of a file the page cache has, asked without reading any of it."""

from __future__ import annotations

import ctypes
import mmap
import os

_LOWEST_BIT = bytes(byte & 1 for byte in range(256))  # the others may mean something some day
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64),
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


def is_resident(fd: int, start: int, length: int) -> bool:
    """Say whether at least half of a range that starts with a page is in memory; raises `OSError`.

    The kernel tells who may write the file; to others it says that all is there.
    """
    address = _libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, start)
    if address == _FAILED:
        raise _error()
    try:
        pages = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
        if _libc.mincore(address, length, pages) != 0:
            raise _error()
    finally:
        _libc.munmap(address, length)
    return 2 * pages.raw.translate(_LOWEST_BIT).count(1) >= len(pages.raw)


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
