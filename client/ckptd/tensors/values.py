"""Values that are no tensors: as bytes that load without running code, and back as they were."""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from ckptd.tensors import archive, arrays
from ckptd_proto import errors

_GRANULE_BYTES = 256
_KNOWN_MAX = 1 << 16
_KNOWN_MAX_BYTES = 4096
_SIMPLE = frozenset({bool, int, float, type(None)})  # always come back: not worth a look
_WAY_OUT = (
    "save what it is made of (numbers, strings, bytes, lists, tuples, dicts, tensors, numpy"
    " arrays), or give the object state_dict() and load_state_dict()"
)


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        return arrays.reduced(obj) or NotImplemented


_PICKLE = SimpleNamespace(__name__="pickle", Pickler=_Pickler, dump=pickle.dump)


class Encoder:
    """Encodes values, and remembers those that do not change from save to save."""

    def __init__(self) -> None:
        self._known: dict[str, bytes] = {}

    def encode(self, key: str, value: object) -> tuple[bytes, str]:
        """Return what `encode` does, and the value's fingerprint."""
        try:
            mark = fingerprint(value)
        except Exception as error:
            raise _refusal(key, value, _reason(error)) from error
        data = self._known.get(mark)
        if data is None:
            data = encode(key, value)
            if len(data) <= _KNOWN_MAX_BYTES:
                if len(self._known) >= _KNOWN_MAX:
                    self._known.clear()
                self._known[mark] = data
        return data, mark


def encode(key: str, value: object) -> bytes:
    """Return *value* as `torch.load` reads it; raises `InvalidArgument` if it would not come back.

    The bytes are padded, so that a counter that grows does not move everything behind it.
    """
    out = io.BytesIO()
    try:
        torch.save(value, out, _PICKLE, _use_new_zipfile_serialization=False)
        data = out.getvalue()
        restored = value if type(value) in _SIMPLE else decode(data)
        is_same = same(value, restored)
    except Exception as error:
        raise _refusal(key, value, _reason(error)) from error
    if not is_same:
        raise _refusal(key, value, f"it comes back as {_short(restored)}")
    return data.ljust(padded_bytes(len(data)), b"\0")


def decode(data: bytes) -> Any:
    """Return the value in *data*; runs no code that *data* brings along."""
    return archive.value(data)


def padded_bytes(length: int) -> int:
    """Return the size class of *length*: an eighth of its power of two, 256 bytes at least."""
    granule = max(_GRANULE_BYTES, 1 << max(length.bit_length() - 4, 0))
    return -(-length // granule) * granule


def same(left: object, right: object) -> bool:
    """Say whether *left* and *right* have the same types and bits all the way down."""
    return type(left) is type(right) and fingerprint(left) == fingerprint(right)


def fingerprint(value: object) -> str:
    """Return a hash of types and values, the same in every process."""
    digest = hashlib.sha256()
    for part in _parts(value):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def tensor_fingerprint(tensor: torch.Tensor) -> str:
    """Return a hash of dtype, shape and elements of a CPU tensor."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(_elements(tensor))
    return digest.hexdigest()


def _elements(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    elements: Any = flat.view(torch.uint8).numpy()
    return memoryview(elements) if flat.numel() else memoryview(b"")


def _parts(value: object) -> Iterator[bytes]:
    """Yield *value* in pieces that differ whenever the values do."""
    kind = type(value)
    yield f"{kind.__module__}.{kind.__qualname__}".encode()
    if isinstance(value, float):
        yield b"nan" if math.isnan(value) else struct.pack("<d", value)
    elif isinstance(value, int):
        yield hex(value).encode()  # of any length, unlike its decimals
    elif isinstance(value, complex):
        yield struct.pack("<dd", value.real, value.imag)
    elif isinstance(value, bytes | bytearray):
        yield bytes(value)
    elif isinstance(value, str):
        yield value.encode("utf-8", "surrogatepass")
    elif isinstance(value, list | tuple):
        yield str(len(value)).encode()
        for item in value:
            yield from _parts(item)
    elif isinstance(value, set | frozenset):
        yield from (part.encode() for part in sorted(map(fingerprint, value)))
    elif isinstance(value, dict):
        yield str(len(value)).encode()
        for name, item in value.items():
            yield from _parts(name)
            yield from _parts(item)
    elif isinstance(value, torch.Tensor):
        yield f"{value.requires_grad}".encode()
        yield tensor_fingerprint(value).encode()
    elif kind.__module__ == "numpy":
        yield from _numpy_parts(value)
    else:
        yield repr(value).encode("utf-8", "backslashreplace")


def _numpy_parts(value: Any) -> Iterator[bytes]:
    import numpy

    if not isinstance(value, numpy.ndarray | numpy.generic):
        yield repr(value).encode()  # dtypes
        return
    yield f"{value.dtype.str} {value.dtype.descr} {value.shape}".encode()
    if value.dtype.hasobject:
        for item in value.reshape(-1).tolist():
            yield from _parts(item)
    else:
        yield value.tobytes()


def _refusal(key: str, value: object, reason: str) -> errors.InvalidArgument:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    text = f"{key!r} holds a {kind} that would not load back as it is ({reason}): {_WAY_OUT}"
    return errors.InvalidArgument(text)


def _reason(error: Exception) -> str:
    """Return the one sentence that matters of torch's page of advice."""
    first = str(error).partition("\n")[0].partition(". Please")[0]
    return f"{type(error).__name__}: {first}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
