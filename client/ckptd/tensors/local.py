"""What one rank holds of a state: its plan, and the bytes and tensors to fill it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.nn.parameter import Buffer, Parameter
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ckptd.tensors import framing, samples, values
from ckptd.tensors.plan import Entry, LocalPlan
from ckptd.tensors.state import Leaf, capture
from ckptd_proto import errors

_COMPARED_MAX_BYTES = 1 << 20  # above, the hash would cost more than the mistake is likely

Source = torch.Tensor | bytes
SourceKey = tuple[str, tuple[int, ...]]
"""Name and offsets: what tells the pieces of one rank apart."""


@dataclass(frozen=True, slots=True)
class Local:
    """One rank's part of a save, before anything is copied."""

    plan: LocalPlan
    sources: dict[SourceKey, Source]
    optimizers: tuple[Optimizer, ...] = ()
    """Whose steps, and nothing else, change what they own of it."""


def take(state: Any, encoder: values.Encoder) -> Local:
    """Return what this rank holds of *state*; objects are encoded, tensors only looked at.

    Raises `InvalidArgument`, naming the key, for what could not be given back.
    """
    captured = capture(state)
    entries: list[Entry] = []
    sources: dict[SourceKey, Source] = {}
    for name, leaf in captured.leaves.items():
        if isinstance(leaf.value, torch.Tensor):
            made = _tensor_entries(name, leaf)
        else:
            made = [_object_entry(name, leaf, encoder)]
        for entry, source in made:
            entries.append(entry)
            sources[name, entry.offsets] = source
    return Local(LocalPlan(tuple(entries), captured.nodes), sources, captured.optimizers)


def chunks(name: str, tensor: torch.Tensor) -> list[tuple[tuple[int, ...], torch.Tensor]]:
    """Return the pieces of *tensor* in this process's memory, each with its offsets."""
    if not isinstance(tensor, DTensor):
        return [((0,) * tensor.dim(), tensor)]
    try:
        placed = tensor.__create_chunk_list__()  # type: ignore[no-untyped-call]  # torch's own protocol
    except (RuntimeError, NotImplementedError) as error:
        text = f"the pieces of the DTensor {name!r} have no place of their own ({error})"
        raise errors.InvalidArgument(text) from error
    return [(tuple(chunk.offsets), tensor.to_local()) for chunk in placed]


def check_plain(name: str, tensor: torch.Tensor) -> None:
    """Raise `InvalidArgument` if *tensor* has no plain elements that could be saved."""
    if reason := _refused(tensor):
        raise errors.InvalidArgument(f"the tensor {name!r} cannot be saved: {reason}")


def _object_entry(name: str, leaf: Leaf, encoder: values.Encoder) -> tuple[Entry, Source]:
    data, mark = encoder.encode(name, leaf.value)
    content = mark if leaf.compared else ""
    return Entry(name, "", (), (), (), 0, len(data), content=content), data


def _tensor_entries(name: str, leaf: Leaf) -> list[tuple[Entry, Source]]:
    tensor: torch.Tensor = leaf.value
    check_plain(name, tensor)
    made: list[tuple[Entry, Source]] = []
    for offsets, piece in chunks(name, tensor):
        sizes = tuple(piece.shape)
        payload_bytes = framing.payload_bytes(tensor.dtype, sizes)
        entry = Entry(
            name,
            framing.dtype_name(tensor.dtype),
            tuple(tensor.shape),
            offsets,
            sizes,
            len(framing.prefix(tensor.dtype, sizes)),
            payload_bytes,
            balanced=leaf.balanced,
            still=leaf.still,
            content="" if isinstance(tensor, DTensor) else _content(leaf, piece, payload_bytes),
        )
        made.append((entry, piece.detach()))
    return made


def _content(leaf: Leaf, tensor: torch.Tensor, payload_bytes: int) -> str:
    """Return what must be the same on every rank that holds *tensor*; empty if nothing must.

    Devices are not waited for: a step would notice.
    """
    if not tensor.is_cpu:
        return ""
    if leaf.balanced:
        return samples.sample(tensor)
    is_compared = leaf.compared and payload_bytes <= _COMPARED_MAX_BYTES
    return values.tensor_fingerprint(tensor) if is_compared else ""


_REFUSED: tuple[tuple[Callable[[torch.Tensor], bool], str], ...] = (
    (lambda tensor: tensor.is_meta, "it is on the meta device and has no elements"),
    (lambda tensor: tensor.is_nested, "it is nested: save its values() and offsets()"),
    (lambda tensor: tensor.is_quantized, "it is quantized: save int_repr() and its scales"),
    (lambda tensor: tensor.layout != torch.strided, "it is sparse: save indices() and values()"),
)


def _refused(tensor: torch.Tensor) -> str:
    """Say why *tensor* has no plain elements; empty if it has."""
    for applies, reason in _REFUSED:
        if applies(tensor):
            return reason
    if isinstance(tensor, DTensor | Parameter | Buffer) or type(tensor) is torch.Tensor:
        return ""
    if is_traceable_wrapper_subclass(tensor):
        return f"it is a {type(tensor).__name__}, which wraps others: save the tensors inside"
    return ""
