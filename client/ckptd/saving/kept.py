"""What a slot holds already of what does not change: it need not be copied again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from ckptd.tensors import framing, stage
from ckptd.tensors.local import Source, SourceKey
from ckptd.tensors.plan import Placed

_WHOLE_BYTES = 64 << 10  # smaller pieces are compared whole
_BLOCKS = 16
_BLOCK_BYTES = _WHOLE_BYTES // _BLOCKS

_weak: Any = StorageWeakRef
"""Holds the address of a storage, so that no other gets it; not its elements."""
Layout = tuple[tuple[str, int, int], ...]
"""Name, start and size of each image of a slot."""


@dataclass(slots=True)
class _Slot:
    layout: Layout
    marks: dict[str, tuple[object, ...]] = field(default_factory=dict)


class Kept:
    """Fills images, and leaves out those that their memory holds from a save before.

    Those are images of what is not expected to change, in the same place of the same slot, whose
    tensors are the same memory, unchanged by the count of torch, and the same in a sample.
    """

    def __init__(self) -> None:
        self._slots: dict[str, _Slot] = {}

    def begin(self, slot: str, layout: Layout, mapped: Sequence[str]) -> None:
        """Say how *slot* is laid out now; of slots that are not *mapped* any more nothing is known."""
        self._slots = {name: held for name, held in self._slots.items() if name in mapped}
        held = self._slots.get(slot)
        if held is None or held.layout != layout:
            self._slots[slot] = _Slot(layout)

    def fill(
        self,
        slot: str,
        name: str,
        memory: memoryview,
        pieces: Sequence[Placed],
        sources: Mapping[SourceKey, Source],
    ) -> bool:
        """Make *memory* the image *name* of *slot*; say whether something was copied."""
        held = self._slots[slot].marks
        marks = _marks(pieces, sources)
        before = held.pop(name, None)  # until it is whole again
        if marks is not None and before == marks and _is_there(memory, pieces, sources):
            held[name] = marks
            return False
        stage.fill(memory, pieces, sources)
        if marks is not None:
            held[name] = marks
        return True


def _marks(
    pieces: Sequence[Placed], sources: Mapping[SourceKey, Source]
) -> tuple[object, ...] | None:
    """Return what tells whether the sources are those of before; None if nothing does."""
    marks: list[object] = []
    for piece in pieces:
        source = sources[piece.entry.name, piece.entry.offsets]
        if not (piece.entry.still and isinstance(source, torch.Tensor)):
            return None
        if source.is_inference() or not source.is_contiguous():
            return None  # changes are not counted, or its elements lie otherwise
        storage = _weak(source.untyped_storage())
        where = (source.storage_offset(), source.is_conj(), source.is_neg())
        marks.append((piece, storage, where, source._version))
    return tuple(marks)


def _is_there(
    memory: memoryview, pieces: Sequence[Placed], sources: Mapping[SourceKey, Source]
) -> bool:
    for piece in pieces:
        source: Any = sources[piece.entry.name, piece.entry.offsets]
        if memory[piece.start : piece.payload_start] != framing.prefix(
            source.dtype, piece.entry.sizes
        ):
            return False  # the memory was given back meanwhile
        if source.numel() and not _is_alike(memory[piece.payload_start : piece.end], source):
            return False
    return True


def _is_alike(memory: memoryview, source: torch.Tensor) -> bool:
    """Compare all of a small tensor, and blocks of a large one: some writes count nowhere."""
    ours = torch.frombuffer(memory, dtype=torch.uint8)
    theirs = source.resolve_conj().resolve_neg().reshape(-1).view(torch.uint8)
    if len(memory) > _WHOLE_BYTES:
        step = (len(memory) - _BLOCK_BYTES) // (_BLOCKS - 1)
        ours = ours.as_strided((_BLOCKS, _BLOCK_BYTES), (step, 1))
        start = theirs.storage_offset()
        theirs = theirs.as_strided((_BLOCKS, _BLOCK_BYTES), (step, 1), start)
    return torch.equal(ours, theirs.cpu())
