"""Laying a rank's values out as its final files, in memory that someone else owns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from ckptd.tensors import framing
from ckptd.tensors.local import Source, SourceKey
from ckptd.tensors.plan import Placed

Memory = memoryview


def fill(image: Memory, placed: Iterable[Placed], sources: Mapping[SourceKey, Source]) -> None:
    """Write each piece of *placed* at its place in *image*; what is between stays as it is."""
    for piece in placed:
        source = sources[piece.entry.name, piece.entry.offsets]
        if isinstance(source, bytes):
            image[piece.start : piece.end] = source
            continue
        framed = framing.prefix(source.dtype, piece.entry.sizes)
        image[piece.start : piece.payload_start] = framed
        if piece.entry.payload_bytes:
            _copy(image[piece.payload_start : piece.end], source)


def _copy(memory: Memory, source: torch.Tensor) -> None:
    """Copy the elements of *source*, in row-major order; releases the GIL meanwhile."""
    target = torch.frombuffer(memory, dtype=torch.uint8).view(source.dtype).view(source.shape)
    target.copy_(source)
