"""Tensors that torch itself has written, as zip archives or before: where their elements lie."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from ckptd.tensors.archive import MAGIC, Archive, check_order
from ckptd.tensors.pieces import Stored
from ckptd.tensors.unpickle import Reader

_PICKLE_BYTES_MAX = 1 << 20  # of the description of one tensor


@dataclass(frozen=True, slots=True)
class Described:
    """A tensor without its elements."""

    stored: Stored
    shape: tuple[int, ...]


def describe(file: BinaryIO, name: str, start: int) -> Described:
    """Return where the elements of a tensor lie that was saved at *start* of the file *name*.

    *file* holds just that entry. Raises whatever comes up if it is no plain tensor.
    """
    file.seek(0)
    if file.read(len(MAGIC)) == MAGIC:
        archive = Archive(file)
        pickled = archive.read("data.pkl")
        found = _Describer(io.BytesIO(pickled), len(pickled)).load()
        tensor = _checked(found)
        offset, held = archive.where(f"data/{tensor.key}")
    else:
        file.seek(0)
        magic, version, system = (_Describer(file, _PICKLE_BYTES_MAX).load() for _ in range(3))
        if (magic, version) != (MAGIC_NUMBER, PROTOCOL_VERSION):
            raise UnpicklingError("it does not begin as torch.save begins")
        check_order("little" if system["little_endian"] else "big")
        tensor = _checked(_Describer(file, _PICKLE_BYTES_MAX).load())
        if _Describer(file, _PICKLE_BYTES_MAX).load() != [tensor.key]:
            raise UnpicklingError("it is not the elements of one tensor that follow")
        (count,) = struct.unpack("<q", file.read(8))
        offset, held = file.tell(), count * tensor.storage_itemsize
    return tensor.placed(name, start + offset, held)


@dataclass(frozen=True, slots=True)
class _Elements:
    """The storage of a tensor."""

    key: str
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A view of elements that nobody has read."""

    key: str
    storage_itemsize: int
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    bits: tuple[str, ...]

    def placed(self, name: str, start: int, held_bytes: int) -> Described:
        """Return it with its elements from *start* on; raises unless *held_bytes* hold them."""
        last = self.offset + sum(
            (n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)
        )
        if 0 not in self.shape and (last + 1) * self.dtype.itemsize > held_bytes:
            raise UnpicklingError("a tensor reaches beyond its elements")
        offset = start + self.offset * self.dtype.itemsize
        return Described(Stored(name, offset, self.dtype, self.strides, self.bits), self.shape)


class _Describer(Reader):
    """Reads a tensor and allocates nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name in _REBUILD:
            return _REBUILD[name]
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str:
            raise UnpicklingError("a tensor stands on something else than elements")
        return _Elements(key, dtype)


def _described(
    elements: Any, dtype: Any, offset: Any, shape: Any, strides: Any, bits: Any = None
) -> _Tensor:
    numbers = (offset, *shape, *strides)
    if not (isinstance(elements, _Elements) and isinstance(dtype, torch.dtype)):
        raise UnpicklingError("a tensor is described otherwise")
    if not all(type(n) is int and n >= 0 for n in numbers) or len(shape) != len(strides):
        raise UnpicklingError("a tensor is described otherwise")
    if not set(bits or ()) <= {"conj", "neg"}:
        raise UnpicklingError("a tensor has marks that nobody knows")
    return _Tensor(
        elements.key,
        elements.dtype.itemsize,
        dtype,
        offset,
        tuple(shape),
        tuple(strides),
        tuple(bits or ()),
    )


def _rebuild(
    elements: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, bits: Any = None
) -> _Tensor:
    return _described(elements, elements.dtype, offset, shape, strides, bits)


def _rebuild_newer(
    elements: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    bits: Any = None,
) -> _Tensor:
    return _described(elements, dtype, offset, shape, strides, bits)


def _rebuild_parameter(data: Any, requires_grad: Any, hooks: Any) -> Any:
    return data


_REBUILD = {
    "_rebuild_tensor_v2": _rebuild,
    "_rebuild_tensor_v3": _rebuild_newer,
    "_rebuild_parameter": _rebuild_parameter,
}


def _checked(found: Any) -> _Tensor:
    if not isinstance(found, _Tensor):
        raise UnpicklingError(f"it is a {type(found).__name__} and no plain tensor")
    return found
