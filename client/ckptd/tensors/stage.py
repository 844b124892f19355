"""Laying a rank's values out as its final files, in memory that someone else owns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

from ckptd.tensors import framing
from ckptd.tensors.copying import Copying
from ckptd.tensors.local import Source, SourceKey
from ckptd.tensors.plan import Placed
from ckptd.tensors.samples import Moment
from ckptd_proto import errors

Memory = memoryview


@contextmanager
def of_one_moment(placed: Iterable[Placed], sources: Mapping[SourceKey, Source]) -> Iterator[None]:
    """Copy *placed* in the block, all of it as it is now.

    Raises `Aborted`, naming a tensor, if one was seen to change before the last was copied.
    """
    named = ((each.entry.name, sources[each.entry.name, each.entry.offsets]) for each in placed)
    moment = Moment((name, part) for name, part in named if isinstance(part, torch.Tensor))
    yield
    if (name := moment.changed()) is not None:
        text = f"the tensor {name!r} changed while it was copied: a thread or an optimizer step ran"
        text += " beside save(); let nothing write to the state until it returns"
        raise errors.Aborted(text)


def fill(
    image: Memory,
    placed: Iterable[Placed],
    sources: Mapping[SourceKey, Source],
    copying: Copying,
) -> None:
    """Write each piece of *placed* at its place in *image*; what is between stays as it is.

    What lies on a device is left to *copying*.
    """
    for piece in placed:
        source = sources[piece.entry.name, piece.entry.offsets]
        if isinstance(source, bytes):
            image[piece.start : piece.end] = source
            continue
        framed = framing.prefix(source.dtype, piece.entry.sizes)
        image[piece.start : piece.payload_start] = framed
        if piece.entry.payload_bytes:
            memory = image[piece.payload_start : piece.end]
            if not copying.takes(piece.entry.name, memory, source):
                _copy(memory, source)


def _copy(memory: Memory, source: torch.Tensor) -> None:
    """Copy the elements of *source*, in row-major order; releases the GIL meanwhile."""
    target = torch.frombuffer(memory, dtype=torch.uint8).view(source.dtype).view(source.shape)
    target.copy_(source)
