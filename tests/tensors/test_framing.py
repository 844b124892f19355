from __future__ import annotations

import io
import math
import struct
import warnings

import pytest
import torch

from ckptd.tensors import framing

NEWER = [  # those whose elements torch reads over plain bytes
    dtype
    for dtype in torch.storage._new_dtypes()
    if not str(dtype).startswith(("torch.bits", "torch.quint", "torch.qint"))
]
TYPED = [
    dtype
    for dtype in torch.storage._dtype_to_storage_type_map()
    if not str(dtype).startswith(("torch.q", "torch.bits"))
]
SHAPES = [(), (0,), (1,), (3, 2), (2, 0, 3), (4, 1, 5)]


def framed(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[bytes, bytes]:
    length = framing.payload_bytes(dtype, shape)
    payload = bytes(i % 2 if dtype == torch.bool else i % 251 for i in range(length))
    return framing.prefix(dtype, shape) + payload, payload


def elements(tensor: torch.Tensor) -> bytes:
    if not tensor.numel():
        return b""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [*TYPED, *NEWER], ids=str)
def test_stock_torch_reads_every_dtype_and_shape_weights_only(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    data, payload = framed(dtype, shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ComplexHalf support is experimental")
        tensor = torch.load(io.BytesIO(data + b"\0" * 100), weights_only=True)
        fresh = torch.empty(shape, dtype=dtype)
    assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape)
    assert tensor.stride() == fresh.stride()
    assert elements(tensor) == payload


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TYPED, ids=str)
def test_the_bytes_are_those_of_torch_save(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.zeros(shape, dtype=dtype)
    out = io.BytesIO()
    torch.save(tensor, out, _use_new_zipfile_serialization=False)
    key = str(tensor.untyped_storage()._cdata).encode()  # torch names storages by their address
    named = out.getvalue().replace(pickled(key), pickled(b"0"))
    assert named == framing.prefix(dtype, shape) + bytes(math.prod(shape) * dtype.itemsize)


def pickled(text: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text
