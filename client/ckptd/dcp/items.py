"""What torch's planner says a rank holds, as our own plan of it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from typing_extensions import TypeIs

from ckptd.tensors import framing, samples
from ckptd.tensors.local import Local, Source, check_plain
from ckptd.tensors.plan import Entry, LocalPlan
from ckptd.tensors.state import storage_of
from ckptd.tensors.tree import LEAF, LIST, Node, Path
from ckptd.tensors.values import Encoder
from ckptd_proto import errors

_BALANCED_MIN_BYTES = 64 << 10
"""Smaller replicas may be buffers that each rank has otherwise: all are the lowest rank's."""


Frozen = frozenset[int]
"""The storages of tensors that are not expected to change."""


def is_plain(planner: SavePlanner) -> bool:
    """Say whether *planner* saves what is in the state, as it is."""
    kind, plain = type(planner), DefaultSavePlanner
    return isinstance(planner, plain) and all(
        getattr(kind, name) is getattr(plain, name)
        for name in ("resolve_data", "lookup_object", "transform_object")
    )


def take(
    items: Iterable[WriteItem],
    paths: object,
    planner: SavePlanner,
    frozen: Frozen,
    known: Encoder,
) -> Local:
    """Return what this rank holds of *items*; *paths* are where torch says they belong.

    Raises `InvalidArgument`, naming the key, for what could not be given back.
    """
    entries: list[Entry] = []
    sources: dict[tuple[str, tuple[int, ...]], Source] = {}
    for item in items:
        name = item.index.fqn
        is_object = item.type == WriteItemType.BYTE_IO
        entry, source = (
            _object(item, planner, known) if is_object else _tensor(item, planner, frozen)
        )
        if (name, entry.offsets) in sources:
            raise errors.InvalidArgument(f"{name!r} is there twice on this rank: rename one")
        entries.append(entry)
        sources[name, entry.offsets] = source
    return Local(LocalPlan(tuple(entries), _nodes(entries, paths)), sources)


def of_state(state: Mapping[str, Any], frozen: Frozen, known: Encoder) -> Local:
    """Return what this rank holds of *state*, named as torch's own planner names it."""
    planner = DefaultSavePlanner()
    planner.set_up_planner(dict(state), None, False)
    plan: SavePlan = planner.create_local_plan()
    return take(plan.items, plan.planner_data, planner, frozen, known)


def _object(item: WriteItem, planner: SavePlanner, known: Encoder) -> tuple[Entry, bytes]:
    name = item.index.fqn
    if is_plain(planner):
        assert isinstance(planner, DefaultSavePlanner)  # what is plain is one
        data, mark = known.encode(name, planner.lookup_object(item.index))
    else:
        resolved = planner.resolve_data(item)
        if not isinstance(resolved, io.BytesIO):
            text = f"the planner gives a {type(resolved).__name__} for {name!r}, not a BytesIO"
            raise errors.InvalidArgument(text)
        data, mark = resolved.getvalue(), ""
    return Entry(name, "", (), (), (), 0, len(data), may_differ=True, content=mark), data


def _tensor(item: WriteItem, planner: SavePlanner, frozen: Frozen) -> tuple[Entry, torch.Tensor]:
    name, described = item.index.fqn, item.tensor_data
    tensor = planner.resolve_data(item)
    if described is None or not isinstance(tensor, torch.Tensor):
        text = f"the planner gives a {type(tensor).__name__} for the tensor {name!r}"
        raise errors.InvalidArgument(text)
    check_plain(name, tensor)
    sizes = tuple(described.chunk.sizes)
    if tuple(tensor.shape) != sizes:
        text = f"{name!r} was planned as {list(sizes)} and is {list(tensor.shape)}"
        raise errors.InvalidArgument(text)
    payload_bytes = framing.payload_bytes(tensor.dtype, sizes)
    is_shard = item.type == WriteItemType.SHARD
    is_replica = not is_shard and payload_bytes >= _BALANCED_MIN_BYTES
    entry = Entry(
        name,
        framing.dtype_name(tensor.dtype),
        tuple(described.size),
        tuple(described.chunk.offsets),
        sizes,
        len(framing.prefix(tensor.dtype, sizes)),
        payload_bytes,
        balanced=is_shard or is_replica,
        still=storage_of(tensor) in frozen,
        may_differ=not is_replica,
        content="" if is_shard or not tensor.is_cpu else samples.sample(tensor),
    )
    return entry, tensor.detach()


def _nodes(entries: Iterable[Entry], paths: object) -> tuple[Node, ...]:
    """Return leaves and the containers around them: torch's paths have positions as int."""
    known = paths if isinstance(paths, Mapping) else {}
    nodes: dict[Path, Node] = {}
    for entry in entries:
        raw = known.get(entry.name)
        path: Path = raw if _is_path(raw) else (entry.name,)
        for depth, item in enumerate(path):
            kind = LIST if isinstance(item, int) else "dict"
            nodes.setdefault(path[:depth], Node(path[:depth], kind))
        nodes[path] = Node(path, LEAF)
    return tuple(nodes.values())


def _is_path(raw: object) -> TypeIs[tuple[str | int, ...]]:
    return isinstance(raw, tuple) and len(raw) > 0 and all(type(item) in (str, int) for item in raw)
