"""Bytes of a safetensors file as torch tensors, each in memory of its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from ckptd.values import TensorInfo
from ckptd_proto import errors

if TYPE_CHECKING:
    import torch

_NAMES: Final[Mapping[str, str]] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}


class Elements:
    """Memory for one tensor, to be filled through `view` and then taken as `tensor`."""

    def __init__(self, name: str, info: TensorInfo) -> None:
        """Raises `Unimplemented` for what this torch has no dtype for."""
        import torch

        self._dtype = _dtype(name, info.dtype)
        self._shape = info.shape
        self._bytes = torch.empty(info.size_bytes, dtype=torch.uint8)

    @property
    def view(self) -> memoryview:
        """The memory, writable."""
        return self._bytes.numpy().data

    def tensor(self, device: str) -> torch.Tensor:
        """Return the tensor on *device*; on the CPU without another copy."""
        return self._bytes.view(self._dtype).reshape(self._shape).to(device)


def _dtype(name: str, code: str) -> torch.dtype:
    import torch

    if sys.byteorder != "little":
        raise errors.Unimplemented("safetensors are little-endian, and this machine is not")
    found = getattr(torch, _NAMES.get(code, ""), None)
    if not isinstance(found, torch.dtype):
        text = f"tensor {name!r} is of dtype {code}, which torch {torch.__version__} has not"
        raise errors.Unimplemented(f"{text} or ckptd does not read; fetch the file instead")
    return found
