"""How one value lies in an image: the bytes that stock `torch.load` expects around it.

A tensor is torch's legacy (non-zip) format: a prefix that depends only on dtype and shape, then
the raw elements, to the end. So the offset and length of everything are known before a byte is
copied, and a slice of a tensor is a range of its file.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from ckptd.tensors.boxes import row_major

_PROTOCOL = 2  # the one that torch's weights-only unpickler is made for
_STORAGE_KEY = "0"


class _Storage:
    """Stands for the elements, which are written elsewhere."""

    def __init__(self, kind: type, count: int) -> None:
        self.persistent_id = ("storage", kind, _STORAGE_KEY, "cpu", count, None)


class _Tensor:
    """Stands for a contiguous tensor without its elements."""

    def __init__(self, rebuild: Callable[..., torch.Tensor], arguments: tuple[Any, ...]) -> None:
        self.reduced = (rebuild, arguments)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.persistent_id if isinstance(obj, _Storage) else None

    def reducer_override(self, obj: Any) -> Any:
        return obj.reduced if isinstance(obj, _Tensor) else NotImplemented


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of *dtype* in indexes and plans, e.g. `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype | None:
    """Return the dtype called *name*; None if this torch has none."""
    dtype = getattr(torch, name, None)
    return dtype if isinstance(dtype, torch.dtype) else None


def payload_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Return how many bytes the elements take."""
    return math.prod(shape) * dtype.itemsize


@lru_cache(maxsize=4096)
def prefix(dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    """Return what precedes the elements of a tensor of *dtype* and *shape*."""
    storage = _storage_type(dtype)
    count = math.prod(shape) * (1 if storage else dtype.itemsize)
    out = io.BytesIO()
    for value in (MAGIC_NUMBER, PROTOCOL_VERSION, _system()):
        pickle.dump(value, out, protocol=_PROTOCOL)
    elements = _Storage(storage or torch.ByteStorage, count)
    view: tuple[Any, ...] = (elements, 0, shape, row_major(shape), False, OrderedDict())
    if storage:
        tensor = _Tensor(torch._utils._rebuild_tensor_v2, view)
    else:
        tensor = _Tensor(torch._utils._rebuild_tensor_v3, (*view, dtype))
    _Pickler(out, protocol=_PROTOCOL).dump(tensor)
    pickle.dump([_STORAGE_KEY], out, protocol=_PROTOCOL)
    out.write(struct.pack("<q", count))
    return out.getvalue()


def _storage_type(dtype: torch.dtype) -> type | None:
    """Return torch's typed storage; None for the newer dtypes, which are read over bytes."""
    name = torch.storage._dtype_to_storage_type_map().get(dtype)
    return getattr(torch, name) if name else None


def _system() -> dict[str, Any]:
    return {
        "protocol_version": PROTOCOL_VERSION,
        "little_endian": sys.byteorder == "little",
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
