"""index.json: where every tensor and object of a checkpoint lies, for our own reader."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self

from ckptd.tensors.boxes import Box
from ckptd.tensors.plan import GlobalPlan
from ckptd.tensors.tree import Node, Tree
from ckptd_proto import errors

NAME = "index.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of a file."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a tensor, row-major, without framing."""

    box: Box
    range: Range


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """Everything in a checkpoint."""

    tensors: dict[str, TensorInfo]
    objects: dict[str, Range]
    tree: Tree

    @classmethod
    def decode(cls, data: bytes, *, where: str) -> Self:
        """Return the index in *data*; raises `Unimplemented` for a newer format."""
        raw = json.loads(data)
        if raw["format"] != _FORMAT:
            text = f"{where} has format {raw['format']}, and this ckptd reads {_FORMAT}: upgrade it"
            raise errors.Unimplemented(text)
        tensors = {
            name: TensorInfo(tensor["dtype"], tuple(tensor["shape"]), _chunks(tensor["chunks"]))
            for name, tensor in raw["tensors"].items()
        }
        objects = {name: Range(**where) for name, where in raw["objects"].items()}
        return cls(tensors, objects, Tree(map(Node.from_json, raw["tree"])))


def encode(plan: GlobalPlan) -> bytes:
    """Return the index of *plan*."""
    tensors: dict[str, dict[str, Any]] = {}
    objects: dict[str, dict[str, Any]] = {}
    for placed in plan.placed:
        entry = placed.entry
        where = {
            "file": placed.file,
            "offset": placed.payload_start,
            "length": entry.payload_bytes,
        }
        if entry.is_object:
            objects[entry.name] = where
            continue
        tensor = tensors.setdefault(
            entry.name, {"dtype": entry.dtype, "shape": entry.shape, "chunks": []}
        )
        tensor["chunks"].append({"offsets": entry.offsets, "sizes": entry.sizes, **where})
    tree = [node.to_json() for node in plan.nodes]
    index = {"format": _FORMAT, "tensors": tensors, "objects": objects, "tree": tree}
    return json.dumps(index, separators=(",", ":")).encode()


def _chunks(raw: list[dict[str, Any]]) -> tuple[Chunk, ...]:
    return tuple(
        Chunk(
            (tuple(chunk["offsets"]), tuple(chunk["sizes"])),
            Range(chunk["file"], chunk["offset"], chunk["length"]),
        )
        for chunk in raw
    )
