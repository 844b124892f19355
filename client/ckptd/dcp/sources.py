"""What a checkpoint on disk holds, by ckptd or by torch, as `StorageReader` asks for it."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, Self

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
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from ckptd.dcp import sharing
from ckptd.link.connection import Connection
from ckptd.saving import suspects
from ckptd.saving.keeping import Address
from ckptd.saving.memory import preferred
from ckptd.tensors import described, entries, index, load, metadata, values
from ckptd.tensors.framing import dtype_of
from ckptd.tensors.images import Images
from ckptd.tensors.index import Index
from ckptd.tensors.load import Files
from ckptd.tensors.pieces import ByteRange, Stored
from ckptd.tensors.plain import PlainFiles, Window
from ckptd_proto import errors

_MANIFEST = "manifest.json"
_OBJECT_BYTES_MAX = 1 << 32


class Source(Protocol):
    """One checkpoint."""

    metadata: Metadata
    files: Files

    def wanted(self, items: Iterable[ReadItem]) -> dict[str, str]:
        """Return which chunks of each file *items* lie in, as `wanted_by_several` takes it."""

    def reading(self, shared: Mapping[str, int] | None) -> AbstractContextManager[None]:
        """Have what is read inside the block come from the best copy there is.

        Bit n of *shared* is set if others here read chunk n, by file; None: they may read any.
        """

    def tensor(self, where: MetadataIndex) -> Stored:
        """Return where the elements of a chunk lie."""

    def object(self, name: str) -> Any:
        """Return a value that is no tensor; runs no code that it brings along."""

    def tell(self) -> None:
        """Have the daemon, if one runs here, know what has proved corrupt."""


def open_source(directory: Path, socket: Path | None = None) -> Source:
    """Return the checkpoint in *directory*; warns if nothing vouches for its bytes.

    The daemon at *socket*, or at the usual one, may have it in memory.

    Raises `NotFound` if there is none, `DataLoss` if it is damaged, or would run code.
    """
    if (directory / _MANIFEST).exists():
        return Committed.open(directory, socket)
    if not (directory / metadata.NAME).exists():
        text = f"{directory} is no checkpoint: it has neither {_MANIFEST} nor {metadata.NAME}"
        raise errors.NotFound(text)
    text = f"{directory} has no {_MANIFEST}: ckptd did not write it, and cannot verify its bytes"
    warnings.warn(text, stacklevel=2)
    return Foreign.open(directory)


class Committed:
    """A checkpoint of ckptd: every byte is compared with what the manifest vouches for."""

    def __init__(self, directory: Path, images: Images, found: Index, socket: Path | None) -> None:
        self.files: Files = images
        self._directory = directory
        self.metadata = _metadata_of(found)
        self._images = images
        self._socket = socket
        self._index = found
        self._chunks = {
            (name, chunk.box[0]): Stored.of(chunk, _dtype(name, info.dtype))
            for name, info in found.tensors.items()
            for chunk in info.chunks
        }

    @classmethod
    def open(cls, directory: Path, socket: Path | None) -> Self:
        """Return the checkpoint that is committed as *directory*."""
        images = Images.open(directory)
        if sharing.are_several():
            images.share_all()  # every rank reads the index
        where = str(directory / index.NAME)
        with preferred(images, socket):
            found = Index.decode(images.read(index.NAME), where=where)
        return cls(directory, images, found, socket)

    def wanted(self, items: Iterable[ReadItem]) -> dict[str, str]:
        """Return which chunks of each image *items* lie in."""
        ranges = (one for item in items for one in self._ranges(item))
        found = load.wanted_chunks(ranges, lambda name: self._images.sums(name).chunk_bytes)
        return {name: f"{chunks:x}" for name, chunks in found.items()}

    @contextmanager
    def reading(self, shared: Mapping[str, int] | None) -> Iterator[None]:
        """Read in memory what the daemon has there, and what is *shared* by the page cache."""
        if shared is None:
            self._images.share_all()
        else:
            self._images.share(shared)
        with preferred(self._images, self._socket):
            yield

    def _ranges(self, item: ReadItem) -> Iterator[ByteRange]:
        """Yield where *item* lies."""
        if item.type != LoadItemType.BYTE_IO:
            if math.prod(item.lengths):
                part = (tuple(item.storage_offsets), tuple(item.lengths))
                yield from self.tensor(item.storage_index).ranges(part)
        elif where := self._index.objects.get(item.storage_index.fqn):
            yield where.file, where.offset, where.offset + where.length

    def tensor(self, where: MetadataIndex) -> Stored:
        """Return where the elements of a chunk lie."""
        return self._chunks[where.fqn, tuple(where.offset or ())]

    def object(self, name: str) -> Any:
        """Return a value that is no tensor."""
        return load.read_object(self._images, self._index, name)

    def tell(self) -> None:
        """Have the daemon, if one runs here, know what has proved corrupt."""
        try:
            address = Address.of(self._directory)
        except errors.InvalidArgument:
            return  # a copy that somebody made elsewhere
        suspects.tell(
            lambda: Connection.existing(self._socket),
            *(address, self._images.attempt, self._images.suspects),
        )


class Foreign:
    """A checkpoint that torch has written."""

    def __init__(self, directory: Path, found: Metadata) -> None:
        self.files: Files = PlainFiles(directory)
        self.metadata = found
        self._directory = directory
        self._plain = PlainFiles(directory)
        self._where: dict[MetadataIndex, _StorageInfo] = found.storage_data
        self._described: dict[MetadataIndex, Stored] = {}

    def wanted(self, items: Iterable[ReadItem]) -> dict[str, str]:
        """Return nothing: its files have no chunks."""
        return {}

    def reading(self, shared: Mapping[str, int] | None) -> AbstractContextManager[None]:
        """Read the files: no daemon knows them, and the page cache serves all."""
        return nullcontext()

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Return the checkpoint that `.metadata` in *directory* describes."""
        path = directory / metadata.NAME
        try:
            return cls(directory, described.decode(path.read_bytes()))
        except OSError as error:
            raise errors.Unavailable(f"cannot read {path} ({error}); try again") from error
        except Exception as error:
            raise _unreadable(str(path), error) from error

    def tensor(self, where: MetadataIndex) -> Stored:
        """Return where the elements of a chunk lie: its own description tells."""
        if where not in self._described:
            self._described[where] = self._describe(where)
        return self._described[where]

    def object(self, name: str) -> Any:
        """Return a value that is no tensor."""
        info = self._info(MetadataIndex(name))
        if info.length > _OBJECT_BYTES_MAX:
            raise errors.DataLoss(f"{name!r} in {self._directory} claims {info.length} bytes")
        with self._plain.cursor(info.relative_path) as cursor:
            data = io.BufferedReader(Window(cursor, info.offset, info.length)).read()
        try:
            return values.decode(data)
        except Exception as error:
            raise _unreadable(f"{name!r} in {self._directory}", error) from error

    def tell(self) -> None:
        """Do nothing: nobody vouches for these bytes."""

    def _describe(self, where: MetadataIndex) -> Stored:
        info = self._info(where)
        with self._plain.cursor(info.relative_path) as cursor:
            window = io.BufferedReader(Window(cursor, info.offset, info.length))
            try:
                found = entries.describe(window, info.relative_path, info.offset)
            except errors.CkptdError:
                raise
            except Exception as error:
                raise _unreadable(f"{where.fqn!r} in {self._directory}", error) from error
        if found.shape != self._shape(where):
            text = f"{where.fqn!r} in {self._directory} has another shape than its .metadata says"
            raise errors.DataLoss(text)
        return found.stored

    def _info(self, where: MetadataIndex) -> _StorageInfo:
        info = self._where.get(where)
        if info is None:
            text = f"{self._directory} describes {where.fqn!r} and does not say where it is"
            raise errors.DataLoss(text)
        return info

    def _shape(self, where: MetadataIndex) -> tuple[int, ...]:
        tensor = self.metadata.state_dict_metadata[where.fqn]
        assert isinstance(tensor, TensorStorageMetadata)  # torch plans only chunks of tensors
        return next(tuple(c.sizes) for c in tensor.chunks if c.offsets == where.offset)


def _metadata_of(found: Index) -> Metadata:
    """Return torch's description of our own index."""
    named: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    for name, info in found.tensors.items():
        chunks = [
            ChunkStorageMetadata(torch.Size(chunk.box[0]), torch.Size(chunk.box[1]))
            for chunk in info.chunks
        ]
        properties = TensorProperties(_dtype(name, info.dtype))
        named[name] = TensorStorageMetadata(properties, torch.Size(info.shape), chunks)
    named |= {name: BytesStorageMetadata() for name in found.objects}
    return Metadata(named, metadata.paths(found.tree.leaves(())), {})


def _dtype(name: str, dtype: str) -> torch.dtype:
    known = dtype_of(dtype)
    if known is None:
        raise errors.Unimplemented(f"{name!r} is {dtype}, which this torch has not: upgrade it")
    return known


def _unreadable(what: str, error: Exception) -> errors.DataLoss:
    text = (
        f"{what} cannot be read as plain data ({type(error).__name__}: {error}): it is damaged,"
        " or would run code; if you trust whoever wrote it, torch's own FileSystemReader reads it"
    )
    return errors.DataLoss(text)


def encoded(name: str, value: Any) -> io.BytesIO:
    """Return *value* as torch's planners take it: bytes of ours, whatever was in the file."""
    return io.BytesIO(values.encode(name, value))
