"""A few elements of tensors that tell whether they are the same, at no cost to a step.

They are read where they lie: with an operation of torch's for each of a thousand parameters,
looking would take longer than all the rest of planning.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterable, Sequence
from typing import Final

import torch

STRIDE_BYTES: Final = 1 << 20
"""Between two elements that are looked at: a microsecond for what takes 200 to copy."""
PER_TENSOR_MAX: Final = 64
PER_DEVICE: Final = 64
"""Elements that are looked at on a device, where looking is work of its own."""
_chance: Final = random.Random()  # of our own: the global one is the training's
_SMALL_BYTES: Final = 64 << 10
_WORDS: Final = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32}
_LONGEST: Final = ctypes.c_uint64  # of a complex128: its real part


def sample(tensor: torch.Tensor) -> str:
    """Return the bits of three elements of a strided CPU tensor; empty if it has none."""
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


class Moment:
    """What tensors in host memory were at a moment, as far as a few elements of each tell.

    Large ones are looked at every so many bytes; of small ones, which take no time to copy,
    those that the same stride falls on. Where it begins is another place at each moment.
    """

    def __init__(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Look now."""
        self._seen: list[tuple[str, ctypes._SimpleCData[int], int]] = []
        self._held: list[torch.Tensor] = []  # what is looked at must still be there later
        left_bytes = _chance.randrange(STRIDE_BYTES)  # until the stride falls on a small one
        for name, tensor in tensors:
            if not tensor.is_cpu:
                continue
            size_bytes = tensor.numel() * tensor.itemsize
            left_bytes -= size_bytes
            if size_bytes >= _SMALL_BYTES or (size_bytes and left_bytes < 0):
                self._look(name, tensor, size_bytes)
            left_bytes %= STRIDE_BYTES

    def __len__(self) -> int:
        return len(self._seen)

    def changed(self) -> str | None:
        """Return the name of a tensor that has changed since, None if none was seen to."""
        return next((name for name, word, value in self._seen if word.value != value), None)

    def _look(self, name: str, tensor: torch.Tensor, size_bytes: int) -> None:
        self._held.append(tensor)
        kind = _WORDS.get(tensor.itemsize, _LONGEST)
        elements = min(PER_TENSOR_MAX, max(1, size_bytes // STRIDE_BYTES))
        step = tensor.numel() // elements
        first = _chance.randrange(step)
        places: Iterable[int] = range(first, first + step * elements, step)
        if not tensor.is_contiguous():
            shape, strides = tensor.shape, tensor.stride()
            places = [_place(element, shape, strides) for element in places]
        start, itemsize = tensor.data_ptr(), tensor.itemsize
        for place in places:
            word = kind.from_address(start + itemsize * place)
            self._seen.append((name, word, word.value))


class Glance:
    """A few elements of tensors on a device, by the device's own order: before a copy, and after."""

    def __init__(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Look as the caller's stream sees them."""
        able = [(name, tensor) for name, tensor in tensors if _has_words(tensor)]
        self._words: dict[int, list[tuple[str, torch.Tensor]]] = {}  # by size: what can be stacked
        for _ in range(PER_DEVICE if able else 0):
            name, tensor = _chance.choice(able)
            element = _chance.randrange(tensor.numel())
            self._words.setdefault(tensor.itemsize, []).append((name, _word(tensor, element)))
        self._before = self._look()
        self._differs: dict[int, torch.Tensor] = {}

    def look_again(self) -> None:
        """Look as the stream of the copies sees them, which need not be now."""
        for size, after in self._look().items():
            differs = after != self._before[size]
            self._differs[size] = differs.to("cpu", non_blocking=True)

    def changed(self) -> str | None:
        """Return the name of a tensor that changed between the looks, None if none was seen to."""
        for size, differs in self._differs.items():
            if differs.any():
                return self._words[size][int(differs.nonzero()[0])][0]
        return None

    def _look(self) -> dict[int, torch.Tensor]:
        return {
            size: torch.stack([word for _, word in words]) for size, words in self._words.items()
        }


_INTEGERS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _has_words(tensor: torch.Tensor) -> bool:
    is_plain = not tensor.is_neg() and not tensor.is_conj()
    return is_plain and tensor.numel() > 0 and tensor.itemsize in _INTEGERS


def _word(tensor: torch.Tensor, element: int) -> torch.Tensor:
    """Return a view of the bits of one element."""
    bits = tensor.view(_INTEGERS[tensor.itemsize])
    place = _place(element, tensor.shape, tensor.stride())
    return bits.as_strided((), (), bits.storage_offset() + place)


def _place(element: int, shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return where the *element*-th lies, counted in row-major order."""
    place = 0
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        element, position = divmod(element, size)
        place += position * stride
    return place
