"""Reading what `torch.save` pickled: only plain data can come of it, in memory its size bounds.

`torch.load(weights_only=True)` bounds neither, and what it calls can be changed by anybody in the
process. Here bytes can only ask for the functions below, each of which looks at its arguments.
"""

from __future__ import annotations

import io
import math
import pathlib
import pickle
import struct
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from pickle import UnpicklingError
from typing import Any, BinaryIO, ClassVar

import torch
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from ckptd.tensors import arrays

_SPENT_PER_BYTE = 4
_SPENT_FREELY = 1 << 16
_ELEMENTS_MAX = 1 << 47  # more than memory holds, and far from overflowing


def unpickle(data: bytes) -> Any:
    """Return the value in *data*; raises whatever comes up if it is no plain value."""
    file = io.BytesIO(data)
    magic, version, system = (Reader(file, len(data)).load() for _ in range(3))
    if (magic, version) != (MAGIC_NUMBER, PROTOCOL_VERSION):
        raise UnpicklingError("it does not begin as torch.save begins")
    if system["little_endian"] != (sys.byteorder == "little"):
        raise UnpicklingError("it was saved on a machine of the other byte order")
    reader = Reader(file, len(data))
    value = reader.load()
    reader.fill_storages(Reader(file, len(data)).load(), file)
    return value


@dataclass(frozen=True, slots=True)
class _Storage:
    """Elements that are read after the values that they belong to."""

    dtype: torch.dtype
    memory: torch.Tensor


_OPCODES = (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.REDUCE, pickle.BINPERSID),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINFLOAT, pickle.BINUNICODE),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.LONG4),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
)


class Reader(pickle._Unpickler):
    """The pickle machine in Python, whose memo takes no memory for numbers that are not used."""

    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPCODES
    }

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        super().__init__(file)
        self._left = _SPENT_PER_BYTE * size_bytes + _SPENT_FREELY
        self._storages: dict[str, _Storage] = {}

    def load(self) -> Any:
        """Return the next value of the file."""
        try:
            return super().load()
        except KeyError as error:
            text = f"it asks for what plain data does not need ({error})"
            raise UnpicklingError(text) from error

    def find_class(self, module: str, name: str) -> Any:
        """Return our function for what the value calls; never anything else that can be called."""
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) not in _GLOBALS:
            raise UnpicklingError(f"{module}.{name} is no plain data")
        return _GLOBALS[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the elements that a tensor stands on."""
        kind, dtype, key, _, count, *view = pid  # no view in the zip format
        if kind != "storage" or view not in ([], [None]) or type(count) is not int or count < 0:
            raise UnpicklingError("a tensor stands on something else than elements")
        if key not in self._storages:
            size_bytes = count * dtype.itemsize
            self._spend(size_bytes)
            memory = torch.empty(size_bytes, dtype=torch.uint8, device="cpu")
            self._storages[key] = _Storage(dtype, memory)
        return self._storages[key]

    def memories(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield what the elements of each storage go into, by its key."""
        for key, storage in self._storages.items():
            yield key, storage.memory

    def fill_storages(self, keys: list[str], file: io.BytesIO) -> None:
        """Read the elements, which follow in the order of *keys*."""
        if sorted(keys) != sorted(self._storages):
            raise UnpicklingError("the elements of some tensor are missing")
        for key in keys:
            storage = self._storages[key]
            (count,) = struct.unpack("<q", file.read(8))
            elements: Any = storage.memory.numpy()
            if count * storage.dtype.itemsize != file.readinto(elements) or count < 0:
                raise UnpicklingError("a tensor has not that many elements")

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self._spend(sum(len(each) for each in arguments if isinstance(each, _SIZED)))
        self.stack[-1] = self.stack[-1](*arguments)  # nothing else that can be called gets there

    def _build(self) -> None:
        state = self.stack.pop()
        value = self.stack[-1]
        if arrays.is_array(value):
            self._spend(len(state[-1]))
            arrays.fill(value, state)
        elif type(value) is OrderedDict and type(state) is dict:
            value.__dict__.update(state)
        else:
            raise UnpicklingError(f"a {type(value).__name__} has no state of its own")

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise UnpicklingError("it asks for far more memory than it has bytes")

    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.BUILD[0]] = _build


_SIZED = (str, bytes, bytearray, list, tuple, dict)
_STORAGES = {
    "UntypedStorage": torch.uint8,
    **{name: dtype for dtype, name in torch.storage._dtype_to_storage_type_map().items()},
}


def _taking(make: Callable[..., Any], *kinds: type | tuple[type, ...]) -> Callable[..., Any]:
    """Return *make*, which takes at most as many arguments as *kinds* says, of these types."""

    def made(*arguments: Any) -> Any:
        fits = len(arguments) <= len(kinds)
        if not (fits and all(type(a) in _tuple(k) for a, k in zip(arguments, kinds, strict=False))):
            shown = ", ".join(type(each).__name__ for each in arguments)
            raise UnpicklingError(f"{make.__qualname__}({shown}) is no plain data")
        return make(*arguments)

    return made


def _tuple(kinds: type | tuple[type, ...]) -> tuple[type, ...]:
    return kinds if isinstance(kinds, tuple) else (kinds,)


def _encoded(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise UnpicklingError(f"bytes are not written as {encoding!r}")
    return text.encode("latin-1")


def _path(*parts: Any) -> pathlib.PurePosixPath:
    return _taking(pathlib.PosixPath, *[str] * len(parts))(*parts)  # type: ignore[no-any-return]  # it is one


def _pure_path(*parts: Any) -> pathlib.PurePosixPath:
    return _taking(pathlib.PurePosixPath, *[str] * len(parts))(*parts)  # type: ignore[no-any-return]  # it is one


def _moment(kind: type[date | time]) -> Callable[..., Any]:
    def made(state: bytes, *zone: timezone) -> Any:
        return kind(state, *zone).replace()  # type: ignore[arg-type]  # as pickled; replace() looks at every field

    return _taking(made, bytes, timezone)


def _parameter(data: Any, requires_grad: Any, _: Any) -> torch.Tensor:
    if type(data) is not torch.Tensor:
        raise UnpicklingError("a parameter is no tensor")
    return torch.nn.Parameter(data, requires_grad is True)


def _tensor(storage: Any, *rest: Any) -> torch.Tensor:
    return _viewed(storage, storage.dtype, *rest)


def _newer_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> torch.Tensor:
    if not isinstance(dtype, torch.dtype):
        raise UnpicklingError("a tensor has no dtype")
    return _viewed(storage, dtype, offset, size, stride, grad, hooks, *rest)


def _viewed(
    storage: Any,
    dtype: torch.dtype,
    offset: Any,
    size: Any,
    stride: Any,
    grad: Any,
    _: Any,
    bits: Any = None,
) -> torch.Tensor:
    numbers = (offset, *size, *stride)
    if not (isinstance(storage, _Storage) and all(type(n) is int and n >= 0 for n in numbers)):
        raise UnpicklingError("a tensor is described otherwise")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    is_inside = 0 in size or (last + 1) * dtype.itemsize <= storage.memory.numel()
    if not is_inside or math.prod(max(n, 1) for n in size) > _ELEMENTS_MAX:
        raise UnpicklingError("a tensor reaches beyond its elements")
    elements = storage.memory.untyped_storage()
    tensor = torch.empty(0, dtype=dtype, device="cpu").set_(elements, offset, size, stride)
    for bit in bits or ():
        tensor = {"conj": torch.conj, "neg": torch._neg_view}[bit](tensor)
    return tensor.requires_grad_(grad is True)


def _named_only(*_: Any) -> None:
    raise UnpicklingError("numpy arrays are not made by calling their class")


def _globals() -> dict[tuple[str, str], Callable[..., Any]]:
    whole = (int, type(None))
    named: dict[str, Callable[..., Any]] = {
        "_codecs encode": _taking(_encoded, str, str),
        "__builtin__ bytes": _taking(bytes),
        "__builtin__ bytearray": _taking(bytearray, bytes),
        "__builtin__ set": _taking(set, list),
        "__builtin__ frozenset": _taking(frozenset, list),
        "__builtin__ complex": _taking(complex, float, float),
        "__builtin__ xrange": _taking(range, int, int, int),
        "__builtin__ slice": lambda *bounds: slice(*bounds),
        "collections Counter": _taking(Counter, dict),
        "collections OrderedDict": _taking(OrderedDict),
        "datetime date": _moment(date),
        "datetime datetime": _moment(datetime),
        "datetime time": _moment(time),
        "datetime timedelta": _taking(timedelta, int, int, int),
        "datetime timezone": _taking(timezone, timedelta, str),
        "torch Size": _taking(torch.Size, tuple),
        "torch device": _taking(torch.device, str, whole),
        "torch.serialization _get_layout": _taking(torch.serialization._get_layout, str),
        "torch._utils _rebuild_tensor_v2": _tensor,
        "torch._utils _rebuild_tensor_v3": _newer_tensor,
        "torch._utils _rebuild_parameter": _parameter,
        "numpy dtype": arrays.dtype,
        "numpy ndarray": _named_only,
    }
    for module in ("pathlib", "pathlib._local"):
        named[f"{module} PosixPath"] = _path
        named[f"{module} PurePosixPath"] = _pure_path
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        named[f"{module} _reconstruct"] = arrays.empty
        named[f"{module} scalar"] = arrays.scalar
    return {(name.partition(" ")[0], name.partition(" ")[2]): made for name, made in named.items()}


_GLOBALS = _globals()
