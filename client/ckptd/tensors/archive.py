"""What `torch.save` writes now: zip archives, read without running what is in them."""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from pickle import UnpicklingError
from typing import Any, BinaryIO, Final

import torch

from ckptd.tensors.unpickle import Reader, unpickle

MAGIC: Final = b"PK\x03\x04"
_LOCAL_HEADER_BYTES: Final = 30


def value(data: bytes) -> Any:
    """Return the value that `torch.save` wrote as *data*; runs no code that *data* brings along."""
    if not data.startswith(MAGIC):
        return unpickle(data)
    archive = Archive(io.BytesIO(data))
    reader = Reader(io.BytesIO(archive.read("data.pkl")), len(data))
    found = reader.load()
    for key, memory in reader.memories():
        elements = archive.read(f"data/{key}")
        if len(elements) != memory.numel():
            raise UnpicklingError("a tensor has not that many elements")
        memory.copy_(torch.frombuffer(bytearray(elements), dtype=torch.uint8))
    return found


class Archive:
    """What `torch.save` calls a zip archive: records, neither compressed nor ever checked."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
        top = records[0].filename.partition("/")[0]
        self._records = {record.filename.removeprefix(f"{top}/"): record for record in records}
        if "byteorder" in self._records:
            check_order(self.read("byteorder").decode())

    def where(self, name: str) -> tuple[int, int]:
        """Return offset and length of a record."""
        record = self._records.get(name)
        if record is None:
            raise UnpicklingError(f"the record {name} is missing")
        if record.compress_type != zipfile.ZIP_STORED:
            raise UnpicklingError(f"the record {name} is compressed")
        self._file.seek(record.header_offset)
        header = self._file.read(_LOCAL_HEADER_BYTES)
        names, extra = struct.unpack("<HH", header[26:30])
        return record.header_offset + _LOCAL_HEADER_BYTES + names + extra, record.file_size

    def read(self, name: str) -> bytes:
        """Return a record."""
        offset, length = self.where(name)
        self._file.seek(offset)
        data = self._file.read(length)
        if len(data) != length:
            raise UnpicklingError(f"the record {name} is cut off")
        return data


def check_order(order: str) -> None:
    """Raise if bytes of this *order* are not ours."""
    if order != sys.byteorder:
        raise UnpicklingError("it was saved on a machine of the other byte order")
