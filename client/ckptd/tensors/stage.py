"""Laying a rank's values out as its final files, in memory that someone else owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ckptd.tensors import framing
from ckptd.tensors.local import Source, SourceKey
from ckptd.tensors.plan import Placed
from ckptd.tensors.samples import Moment
from ckptd_proto import errors

Memory = memoryview


def fill(image: Memory, placed: Sequence[Placed], sources: Mapping[SourceKey, Source]) -> None:
    """Write each piece of *placed* at its place in *image*; what is between stays as it is.

    All of it is to be of one moment: raises `Aborted`, naming a tensor, if one was seen to change
    between the first that was copied and the last.
    """
    found = [(piece, sources[piece.entry.name, piece.entry.offsets]) for piece in placed]
    tensors = ((p.entry.name, source) for p, source in found if isinstance(source, torch.Tensor))
    moment = Moment(tensors)
    for piece, source in found:
        if isinstance(source, bytes):
            image[piece.start : piece.end] = source
            continue
        framed = framing.prefix(source.dtype, piece.entry.sizes)
        image[piece.start : piece.payload_start] = framed
        if piece.entry.payload_bytes:
            _copy(image[piece.payload_start : piece.end], source)
    if (name := moment.changed()) is not None:
        text = f"the tensor {name!r} changed while it was copied: a thread or an optimizer step ran"
        raise errors.Aborted(
            f"{text} beside save(); let nothing write to the state until it returns"
        )


def _copy(memory: Memory, source: torch.Tensor) -> None:
    """Copy the elements of *source*, in row-major order; releases the GIL meanwhile."""
    target = torch.frombuffer(memory, dtype=torch.uint8).view(source.dtype).view(source.shape)
    target.copy_(source)
