"""`.metadata` of others: torch's description of a checkpoint, read without running anything.

Stock torch unpickles it, so that whoever may write it may run code. Here its classes stand for
records, and what is made of them is built by us, each field looked at.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from pickle import UnpicklingError
from typing import Any, ClassVar

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

from ckptd.tensors.unpickle import Reader

_PACKAGE = "torch.distributed.checkpoint"
_METADATA = frozenset(
    {
        *("Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata"),
        *("ChunkStorageMetadata", "TensorProperties", "StorageMeta"),
    }
)
_IGNORED = frozenset({"SavePlan", "WriteItem", "TensorWriteData", "BytesIOWriteData"})
_OPCODES = (
    *(pickle.FRAME, pickle.MEMOIZE, pickle.STACK_GLOBAL, pickle.NEWOBJ),
    *(pickle.SHORT_BINUNICODE, pickle.BINUNICODE8),
)


def decode(data: bytes) -> Metadata:
    """Return what *data*, a `.metadata`, says; raises whatever comes up if it is something else."""
    whole = _fields(_Reader(io.BytesIO(data), len(data)).load(), "Metadata")
    described = {
        _text(name): _kind_of(value) for name, value in whole["state_dict_metadata"].items()
    }
    storage = {
        _index(index): _info(value) for index, value in (whole.get("storage_data") or {}).items()
    }
    return Metadata(described, _paths(whole.get("planner_data")), storage)


class _Record:
    """Stands for an instance of one of torch's classes."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.state: Any = {}


class _Kind:
    """Stands for one of torch's classes; it cannot be called."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Reader(Reader):
    """Knows the newer pickles that `.metadata` is, and these classes."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **Reader.dispatch,
        **{code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPCODES},
    }

    def find_class(self, module: str, name: str) -> Any:
        if module == f"{_PACKAGE}.metadata" and name in _METADATA:
            return _Kind(name)
        if (module, name) == (f"{_PACKAGE}.filesystem", "_StorageInfo"):
            return _Kind(name)
        if module == f"{_PACKAGE}.planner" and name in _IGNORED:
            return _Kind(name)
        if module in (f"{_PACKAGE}.metadata", f"{_PACKAGE}.planner") and name in _ENUMS:
            return _nothing
        if (module, name) in (("torch", "Size"), ("torch.serialization", "_get_layout")):
            return super().find_class(module, name)
        if module in ("pathlib", "pathlib._local") and name == "PosixPath":
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return super().find_class(module, name)
        raise UnpicklingError(f"{module}.{name} does not belong into a .metadata")

    def persistent_load(self, pid: Any) -> Any:
        raise UnpicklingError("a .metadata stands on nothing else")

    def _new(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, _Kind) or arguments != ():
            raise UnpicklingError("only torch's own records are made in a .metadata")
        self.stack.append(_Record(kind.name))

    def _set_state(self) -> None:
        state, record = self.stack.pop(), self.stack[-1]
        if not isinstance(record, _Record):
            raise UnpicklingError(f"a {type(record).__name__} has no state of its own")
        record.state = state

    dispatch[pickle.NEWOBJ[0]] = _new
    dispatch[pickle.BUILD[0]] = _set_state


_ENUMS = frozenset({"_MEM_FORMAT_ENCODING", "WriteItemType"})


def _nothing(*_: Any) -> None:
    return None


def _fields(record: Any, kind: str) -> Mapping[str, Any]:
    if not isinstance(record, _Record) or record.kind != kind or type(record.state) is not dict:
        raise UnpicklingError(f"there is no {kind} where one belongs")
    return record.state


def _text(value: Any) -> str:
    if type(value) is not str:
        raise UnpicklingError(f"a name is a {type(value).__name__}")
    return value


def _numbers(value: Any) -> torch.Size:
    if not isinstance(value, tuple) or not all(type(n) is int and n >= 0 for n in value):
        raise UnpicklingError("a size is no tuple of numbers")
    return torch.Size(value)


def _number(value: Any) -> int:
    return _numbers((value,))[0]


def _kind_of(record: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if isinstance(record, _Record) and record.kind == "BytesStorageMetadata":
        return BytesStorageMetadata()
    tensor = _fields(record, "TensorStorageMetadata")
    properties = tensor["properties"]
    if not isinstance(properties, _Record) or properties.kind != "TensorProperties":
        raise UnpicklingError("a tensor has no properties")
    dtype = properties.state[0]
    if not isinstance(dtype, torch.dtype):
        raise UnpicklingError("a tensor has no dtype")
    chunks = [_chunk(chunk) for chunk in tensor["chunks"]]
    return TensorStorageMetadata(TensorProperties(dtype), _numbers(tensor["size"]), chunks)


def _chunk(record: Any) -> ChunkStorageMetadata:
    chunk = _fields(record, "ChunkStorageMetadata")
    return ChunkStorageMetadata(_numbers(chunk["offsets"]), _numbers(chunk["sizes"]))


def _index(record: Any) -> MetadataIndex:
    index = _fields(record, "MetadataIndex")
    offset = index.get("offset")
    return MetadataIndex(_text(index["fqn"]), None if offset is None else _numbers(offset))


def _info(record: Any) -> _StorageInfo:
    info = _fields(record, "_StorageInfo")
    if info.get("transform_descriptors"):
        raise UnpicklingError("its files are compressed, which is not read here")
    path = PurePosixPath(_text(info["relative_path"]))
    if path.is_absolute() or ".." in path.parts or "\0" in str(path):
        raise UnpicklingError(f"it points outside of its directory, at {str(path)!r}")
    return _StorageInfo(str(path), _number(info["offset"]), _number(info["length"]))


def _paths(raw: Any) -> dict[str, tuple[str | int, ...]] | None:
    """Return where each value belongs; None if somebody's planner says something else."""
    if type(raw) is not dict:
        return None
    for name, path in raw.items():
        if type(name) is not str or type(path) is not tuple:
            return None
        if not all(type(item) in (str, int) for item in path):
            return None
    return raw
