"""What has to be copied from a file into a tensor, in pieces that a thread can hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from ckptd.tensors import boxes
from ckptd.tensors.boxes import Box
from ckptd.tensors.cuts import Layout, cut, windows
from ckptd.tensors.index import Chunk

ByteRange = tuple[str, int, int]
"""A file, and a half-open range in it."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the elements of a saved chunk lie."""

    file: str
    offset: int
    dtype: torch.dtype
    strides: tuple[int, ...]
    bits: tuple[str, ...] = ()
    """`conj` or `neg`, if its elements are to be taken so."""

    @classmethod
    def of(cls, chunk: Chunk, dtype: torch.dtype) -> Self:
        """Return where a *chunk* of our own index lies."""
        return cls(chunk.range.file, chunk.range.offset, dtype, boxes.row_major(chunk.box[1]))

    @property
    def layout(self) -> Layout:
        """How they lie."""
        return Layout(self.offset, self.strides, self.dtype.itemsize)

    def ranges(self, part: Box) -> Iterator[ByteRange]:
        """Yield what is read for *part*, whatever it is copied to."""
        for piece in cut(part, self.layout):
            yield (self.file, *self.layout.span(piece))


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of one saved chunk that one target takes; made by `pieces_of`."""

    stored: Stored
    part: Box
    """Relative to the chunk."""
    target: torch.Tensor
    """Has the sizes of the part."""
    is_bytes: bool
    """The target takes the bytes of the range as they are."""
    byte_range: ByteRange = field(init=False)
    """What holds the part."""

    def __post_init__(self) -> None:
        """Find the range once: it is asked for often."""
        found = (self.stored.file, *self.stored.layout.span(self.part))
        object.__setattr__(self, "byte_range", found)

    @property
    def scratch_bytes(self) -> int:
        """How much memory besides the target's it takes to fill it."""
        _, start, end = self.byte_range
        return 0 if self.is_bytes and self.target.is_cpu else end - start

    def memory(self) -> memoryview:
        """Return the target's memory, if no scratch is needed."""
        memory: Any = self.target.numpy()
        return memoryview(memory)

    def copy(self, data: torch.Tensor) -> None:
        """Fill the target from the bytes of the range."""
        elements = data.view(self.stored.dtype).as_strided(self.part[1], self.stored.strides)
        for bit in self.stored.bits:
            elements = torch.conj(elements) if bit == "conj" else torch._neg_view(elements)
        self.target.copy_(elements)


def pieces_of(stored: Stored, part: Box, target: torch.Tensor) -> Iterator[Piece]:
    """Yield what fills *target* from *part* of a chunk, which is not empty."""
    is_bytes = (
        not stored.bits
        and stored.dtype == target.dtype
        and (target.is_cpu or target.is_cuda)
        and target.is_contiguous()
        and not (target.is_conj() or target.is_neg())
        and _is_dense(stored.strides, part[1])
    )
    if not is_bytes:
        for piece in cut(part, stored.layout):
            yield Piece(stored, piece, narrowed(target, relative(piece, part)), is_bytes=False)
        return
    first, end = stored.layout.span(part)
    data = target.reshape(-1).view(torch.uint8)
    for start, stop in windows(first, end):
        here = Stored(stored.file, start, torch.uint8, (1,))
        taken = ((0,), (stop - start,))
        yield Piece(here, taken, data[start - first : stop - first], is_bytes=True)


def relative(box: Box, origin: Box) -> Box:
    """Return *box* as the one who counts from *origin* sees it."""
    return tuple(a - b for a, b in zip(box[0], origin[0], strict=True)), box[1]


def narrowed(tensor: torch.Tensor, part: Box) -> torch.Tensor:
    """Return *part* of *tensor*, a view."""
    for dim, (start, size) in enumerate(zip(*part, strict=True)):
        if size != tensor.shape[dim]:
            tensor = tensor.narrow(dim, start, size)
    return tensor


def _is_dense(strides: tuple[int, ...], sizes: tuple[int, ...]) -> bool:
    """Say whether a box of *sizes* lies row-major, without gaps."""
    return all(
        size == 1 or stride == dense
        for size, stride, dense in zip(sizes, strides, boxes.row_major(sizes), strict=True)
    )
