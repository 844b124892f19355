"""numpy's part of pickled values: dtypes as text, arrays only of exactly as many bytes as stated.

numpy's own unpickling trusts what it reads, down to raw pointers.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable
from pickle import UnpicklingError
from typing import Any

_ITEM_MAX_BYTES = 1 << 20
_CODE = re.compile(r"\|O|[<>|][biufcSUVmM]\d+(\[\d*[A-Za-z]+\])?")

Reduced = tuple[Callable[..., Any], tuple[Any, ...]]


def reduced(value: Any) -> Reduced | None:
    """Return how a dtype is made by `numpy.dtype` alone; None for anything else."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.dtype):
        return None
    if value.subdtype is not None:
        return numpy.dtype, (value.subdtype,)
    if value.names is None:
        return numpy.dtype, (value.str,)
    fields = [value.fields[name] for name in value.names]
    described = {
        "names": list(value.names),
        "formats": [field[0] for field in fields],
        "offsets": [int(field[1]) for field in fields],
        "itemsize": value.itemsize,
    }
    return numpy.dtype, (described, value.isalignedstruct)


def dtype(what: Any, align: bool = False) -> Any:
    """Return what `reduced` wrote down; objects only as a dtype of their own, never in fields."""
    import numpy

    if isinstance(what, str):
        if not _CODE.fullmatch(what):
            raise UnpicklingError(f"{what!r} is no plain numpy dtype")
        made: Any = numpy.dtype(what)
    elif isinstance(what, tuple):
        base, shape = what
        _check_plain([base])
        _count(shape)
        made = numpy.dtype((base, shape))
    else:
        _check_plain(what["formats"])
        _count(tuple(what["offsets"]))
        if len(what) != 4 or not all(type(name) is str for name in what["names"]):
            raise UnpicklingError("the fields of a numpy dtype are described otherwise")
        made = numpy.dtype(what, align=align is True)
    if made.itemsize > _ITEM_MAX_BYTES:
        raise UnpicklingError(f"one item of numpy's {made} is larger than {_ITEM_MAX_BYTES} bytes")
    return made


def empty(*_: Any) -> Any:
    """Return an array that `fill` will make what it was."""
    import numpy

    return numpy.zeros(0, numpy.int8)


def fill(array: Any, state: Any) -> None:
    """Give *array* what numpy has pickled as its state."""
    _, shape, kind, is_fortran, data = state
    count = _count(shape)
    if type(is_fortran) is not bool:
        raise UnpicklingError("the order of a numpy array is not stated")
    _check_plain([kind], with_objects=isinstance(data, list))
    if isinstance(data, list):
        fits = kind == object and len(data) == count
    else:
        fits = type(data) is bytes and len(data) == count * kind.itemsize
        fits = fits and (kind.itemsize > 0 or count <= 1)
    if not fits:
        raise UnpicklingError(f"a numpy array {list(shape)} has not that many items")
    array.__setstate__((1, shape, kind, is_fortran, data))


def scalar(kind: Any, data: Any) -> Any:
    """Return one item of dtype *kind*."""
    import numpy

    _check_plain([kind])
    if type(data) is not bytes or len(data) != kind.itemsize:
        raise UnpicklingError(f"a numpy scalar of {kind} has not that many bytes")
    make: Any = numpy.float64(0).__reduce__()[0]
    return make(kind, data)


def is_array(value: Any) -> bool:
    """Say whether *value* is a plain numpy array."""
    numpy: Any = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray


def _check_plain(kinds: Iterable[Any], *, with_objects: bool = False) -> None:
    import numpy

    for kind in kinds:
        if not isinstance(kind, numpy.dtype) or (kind.hasobject and not with_objects):
            raise UnpicklingError(f"{kind!r} is no numpy dtype without pointers")


def _count(shape: Any) -> int:
    """Return how many items *shape* has."""
    if type(shape) is not tuple or not all(type(size) is int and size >= 0 for size in shape):
        raise UnpicklingError(f"{shape!r} is no shape")
    return math.prod(shape)
