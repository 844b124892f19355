"""`.metadata`: what stock `torch.distributed.checkpoint` reads. Written here, never read."""

from __future__ import annotations

import pickle
from collections.abc import Iterable

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from ckptd.tensors.framing import dtype_of
from ckptd.tensors.plan import Entry, GlobalPlan
from ckptd.tensors.tree import LEAF, Node

NAME = ".metadata"
_DCP_VERSION = "1.0.0"


def encode(plan: GlobalPlan) -> bytes:
    """Return the metadata of *plan*, as it is written."""
    return pickle.dumps(of_plan(plan))


def of_plan(plan: GlobalPlan) -> Metadata:
    """Return the metadata of *plan*."""
    described: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    for placed in plan.placed:
        entry = placed.entry
        where = _StorageInfo(placed.file, placed.start, placed.end - placed.start)
        if entry.is_object:
            described[entry.name] = BytesStorageMetadata()
            storage[MetadataIndex(entry.name)] = where
            continue
        tensor = described.setdefault(entry.name, _tensor(entry))
        assert isinstance(tensor, TensorStorageMetadata)  # the plan has one kind per name
        chunk = ChunkStorageMetadata(torch.Size(entry.offsets), torch.Size(entry.sizes))
        storage[MetadataIndex(entry.name, entry.offsets, len(tensor.chunks))] = where
        tensor.chunks.append(chunk)
    return Metadata(described, paths(plan.nodes), storage, version=_DCP_VERSION)


def paths(nodes: Iterable[Node]) -> dict[str, tuple[str | int, ...]]:
    """Return where each leaf belongs, as torch says it: keys as str, positions in lists as int."""
    return {
        node.name: tuple(str(item[0]) if isinstance(item, tuple) else item for item in node.path)
        for node in nodes
        if node.kind == LEAF
    }


def _tensor(entry: Entry) -> TensorStorageMetadata:
    dtype = dtype_of(entry.dtype)
    assert dtype is not None  # it comes from a tensor of this torch
    return TensorStorageMetadata(TensorProperties(dtype), torch.Size(entry.shape), [])
