"""A few elements of a tensor that tell whether ranks hold the same, at no cost to a step."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

_WORDS = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32}
_LONGEST = ctypes.c_uint64  # of a complex128: its real part


def sample(tensor: torch.Tensor) -> str:
    """Return the bits of three elements of a strided CPU tensor; empty if it has none.

    They are read where they lie: with an operation of torch's for each of a thousand parameters,
    looking would take longer than all the rest of planning.
    """
    count = tensor.numel()
    if not count:
        return ""
    if tensor.is_neg() or tensor.is_conj():
        tensor = tensor.resolve_neg().resolve_conj()
    size = tensor.itemsize
    middle, last = count // 2, count - 1
    if not tensor.is_contiguous():
        shape, strides = tensor.shape, tensor.stride()
        middle, last = _place(middle, shape, strides), _place(last, shape, strides)
    start = tensor.data_ptr()
    read = _WORDS.get(size, _LONGEST).from_address
    at_middle, at_last = read(start + size * middle).value, read(start + size * last).value
    return f"{read(start).value:x}.{at_middle:x}.{at_last:x}"


def _place(element: int, shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return where the *element*-th lies, counted in row-major order."""
    place = 0
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        element, position = divmod(element, size)
        place += position * stride
    return place
