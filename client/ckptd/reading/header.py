"""The header of a safetensors file: what is in it, and where. Nothing that it says is trusted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ckptd.values import TensorInfo
from ckptd_proto import errors

PREFIX_BYTES: Final = 8
MAX_BYTES: Final = 100_000_000
"""What safetensors itself allows: it bounds the memory that a lie can cost."""
_METADATA = "__metadata__"
_DIMENSIONS_MAX = 64  # torch's own
_SIZE_END = 1 << 63
_BY_BITS: Final = {
    4: "F4",
    6: "F6_E2M3 F6_E3M2",
    8: "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E4M3FNUZ F8_E5M2FNUZ F8_E8M0",
    16: "U16 I16 F16 BF16",
    32: "U32 I32 F32",
    64: "U64 I64 F64 C64",
}
_BITS: Final = {name: bits for bits, names in _BY_BITS.items() for name in names.split()}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor, and the bytes of the file that are its elements."""

    info: TensorInfo
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file holds, in the order in which it lies there."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


def length(prefix: bytes | bytearray, size_bytes: int, *, where: str) -> int:
    """Return how long the header is that follows *prefix*; raises `DataLoss`."""
    if len(prefix) < PREFIX_BYTES:
        raise _damaged(where, f"it has {size_bytes} bytes, too few for a header")
    found = int.from_bytes(prefix, "little")
    if found > MAX_BYTES:
        raise _damaged(where, f"its header claims {found} bytes, and {MAX_BYTES} are allowed")
    if PREFIX_BYTES + found > size_bytes:
        text = f"its header claims {found} bytes, and the file has {size_bytes}"
        raise _damaged(where, text)
    return found


def parse(text: bytes | bytearray, size_bytes: int, *, where: str) -> Header:
    """Return what the header *text* of a file of *size_bytes* says; raises `DataLoss`.

    As safetensors demands, the tensors lie one behind the other and fill the file.
    """
    try:
        fields = json.loads(text.decode(), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise _damaged(where, f"its header is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise _damaged(where, "its header is no JSON object")
    metadata = fields.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(type(word) is str for word in metadata.values()):
        raise _damaged(where, f"its {_METADATA} is not text by name")
    at = PREFIX_BYTES + len(text)
    entries = {name: _entry(name, said, at, where) for name, said in fields.items()}
    ordered = sorted(entries.items(), key=lambda item: (item[1].start, item[1].end))
    for name, entry in ordered:
        if entry.start != at:
            raise _damaged(where, f"tensor {name!r} begins at byte {entry.start}, not {at}")
        at = entry.end
    if at != size_bytes:
        raise _damaged(where, f"its tensors end at byte {at}, and the file at {size_bytes}")
    return Header(dict(ordered), metadata)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name appears twice")
    return made


def _entry(name: str, said: Any, base: int, where: str) -> Entry:
    match said:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, end]}:
            is_sound = len(shape) <= _DIMENSIONS_MAX and _are_sizes(*shape)
            if is_sound and _are_sizes(start) and _are_sizes(end) and start <= end:
                _check_size(name, dtype, shape, end - start, where)
                info = TensorInfo(dtype, tuple(shape), end - start)
                return Entry(info, base + start, base + end)
    raise _damaged(where, f"what it says of tensor {name!r} is no dtype, shape and place")


def _are_sizes(*numbers: object) -> bool:
    """Tell whether these are numbers that can be sizes, even multiplied."""
    product = 1
    for number in numbers:
        if type(number) is not int or not 0 <= number < _SIZE_END:
            return False
        product *= max(1, number)
        if product >= _SIZE_END:
            return False
    return True


def _check_size(name: str, dtype: str, shape: list[int], found: int, where: str) -> None:
    """Compare the length with the shape, if the dtype is one that we know."""
    bits = _BITS.get(dtype)
    if bits is not None and math.prod(shape) * bits != found * 8:
        text = f"tensor {name!r} is {dtype} {shape} and has {found} bytes"
        raise _damaged(where, text)


def _damaged(where: str, what: str) -> errors.DataLoss:
    return errors.DataLoss(
        f"{where} is no whole safetensors file: {what}; ask whoever publishes it for a sound one"
    )
