"""Bytes of a checkpoint into tensors that exist: only what is needed, in parallel, checked."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol, Self

import torch
from torch.autograd.graph import increment_version
from torch.distributed.tensor import DTensor

from ckptd.tensors import boxes, framing, values
from ckptd.tensors.boxes import Box
from ckptd.tensors.images import Images
from ckptd.tensors.index import Chunk, Index, TensorInfo
from ckptd.tensors.local import chunks
from ckptd_proto import errors

_BATCH_BYTES = 32 << 20
_THREADS = 4
"""However few cores there are: a disk wants several reads at once."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A tensor to fill."""

    name: str
    info: TensorInfo
    target: torch.Tensor


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the elements of a saved chunk lie."""

    file: str
    offset: int
    dtype: torch.dtype
    strides: tuple[int, ...]
    bits: tuple[str, ...] = ()
    """`conj` or `neg`, if its elements are to be taken so."""

    @classmethod
    def of(cls, chunk: Chunk, dtype: torch.dtype) -> Self:
        """Return where a *chunk* of our own index lies."""
        return cls(chunk.range.file, chunk.range.offset, dtype, boxes.row_major(chunk.box[1]))


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of one saved chunk that one target takes."""

    stored: Stored
    part: Box
    """Relative to the chunk."""
    target: torch.Tensor
    """Has the sizes of the part."""
    byte_range: tuple[str, int, int] = field(init=False)
    """The file, and the range in it that holds the part."""

    def __post_init__(self) -> None:
        """Find the range once: it is asked for often."""
        stored = self.stored
        first, last = boxes.element_span(stored.strides, self.part)
        start, end = (stored.offset + at * stored.dtype.itemsize for at in (first, last))
        object.__setattr__(self, "byte_range", (stored.file, start, end))

    def memory(self) -> memoryview | None:
        """The target's memory if it takes the bytes of the range as they are; else None."""
        stored, target = self.stored, self.target
        _, start, end = self.byte_range
        is_plain = (
            not stored.bits
            and stored.dtype == target.dtype
            and target.device.type == "cpu"
            and target.is_contiguous()
            and not (target.is_conj() or target.is_neg())
            and end - start == target.numel() * target.itemsize
            and _is_dense(stored.strides, self.part[1])
        )
        if not is_plain:
            return None
        memory: Any = target.reshape(-1).view(torch.uint8).numpy()
        return memoryview(memory)

    def copy(self, data: torch.Tensor) -> None:
        """Fill the target from the bytes of the range."""
        elements = data.view(self.stored.dtype).as_strided(self.part[1], self.stored.strides)
        for bit in self.stored.bits:
            elements = torch.conj(elements) if bit == "conj" else torch._neg_view(elements)
        self.target.copy_(elements)


class Reader(Protocol):
    """One file, read by one thread."""

    def read_into(self, target: memoryview, offset: int, /) -> None:
        """Fill *target* with the bytes at *offset*."""

    def fill(self, parts: Sequence[tuple[int, memoryview]], /) -> None:
        """Fill each target with the bytes at its offset, which rise."""


class Files(Protocol):
    """The files of a checkpoint, wherever they are: all bytes that are loaded come from here."""

    def cursor(self, name: str, /) -> AbstractContextManager[Reader]:
        """Open a file for reading by one thread, best by rising offset."""


def read_object(images: Images, found: Index, name: str) -> Any:
    """Return a value that is no tensor; raises `DataLoss` if its bytes are no such value."""
    where = found.objects.get(name)
    if where is None:
        text = f"the index names {name!r} and does not say where it is; load another step"
        raise errors.DataLoss(text)
    data = bytearray(where.length)
    with images.cursor(where.file) as cursor:
        cursor.read_into(memoryview(data), where.offset)
    try:
        return values.decode(bytes(data))
    except Exception as error:
        text = (
            f"{name!r} in {where.file} cannot be read ({type(error).__name__}: {error}): it was"
            " damaged before it was saved, or a newer ckptd wrote it; load another step"
        )
        raise errors.DataLoss(text) from error


def pieces(wishes: Iterable[Wish]) -> list[Piece]:
    """Return what has to be copied; raises `DataLoss` if the index lacks some of it."""
    return [piece for wish in wishes for piece in _pieces(wish)]


def wanted_chunks(wanted: Iterable[Piece], chunk_bytes: Callable[[str], int]) -> Mapping[str, int]:
    """Return which chunks of each image the pieces lie in: bit n is chunk n."""
    found: dict[str, int] = defaultdict(int)
    for piece in wanted:
        name, start, end = piece.byte_range
        first, last = start // chunk_bytes(name), (end - 1) // chunk_bytes(name)
        found[name] |= (1 << last + 1) - (1 << first)
    return found


def fill(files: Files, wanted: Iterable[Piece], *, place: tuple[int, int] = (0, 1)) -> None:
    """Copy what is saved into the target of each piece, none of them empty.

    Where *place* says that this is one of several who read the same, each begins elsewhere, and
    finds in the page cache what others have read by then. Raises `DataLoss`: all targets are void.
    """
    batches = list(_batches(sorted(wanted, key=lambda piece: piece.byte_range)))
    first = len(batches) * place[0] // place[1]
    batches = [*batches[first:], *batches[:first]]
    mode = torch.is_inference_mode_enabled()
    threads = max(1, min(_THREADS, len(batches)))
    with ThreadPoolExecutor(threads, thread_name_prefix="ckptd-load") as pool:
        copies = [pool.submit(_copy, files, file, batch, mode) for file, batch in batches]
        try:
            for copy in copies:
                copy.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _pieces(wish: Wish) -> Iterator[Piece]:
    for offsets, local in chunks(wish.name, wish.target):
        target = local.detach()
        wanted = (offsets, tuple(target.shape))
        found = 0
        for chunk in wish.info.chunks:
            met = boxes.overlap(chunk.box, wanted)
            if met is None or not target.numel():
                continue
            found += math.prod(met[1])
            yield Piece(
                Stored.of(chunk, target.dtype),
                _relative(met, chunk.box),
                _narrowed(target, _relative(met, wanted)),
            )
        if found != target.numel():
            text = f"the index holds {found} of the {target.numel()} elements of {wish.name!r}"
            raise errors.DataLoss(f"{text}; load another step")


def _is_dense(strides: tuple[int, ...], sizes: tuple[int, ...]) -> bool:
    """Say whether a box of *sizes* lies row-major, without gaps."""
    return all(
        size == 1 or stride == dense
        for size, stride, dense in zip(sizes, strides, boxes.row_major(sizes), strict=True)
    )


def _relative(box: Box, origin: Box) -> Box:
    return tuple(a - b for a, b in zip(box[0], origin[0], strict=True)), box[1]


def _narrowed(tensor: torch.Tensor, part: Box) -> torch.Tensor:
    for dim, (start, size) in enumerate(zip(*part, strict=True)):
        tensor = tensor.narrow(dim, start, size)
    return tensor


def _batches(pieces: list[Piece]) -> Iterator[tuple[str, list[Piece]]]:
    """Cut the work of each file into runs that threads take one by one."""
    for file, of_file in groupby(pieces, key=lambda piece: piece.byte_range[0]):
        batch: list[Piece] = []
        held_bytes = 0
        for piece in of_file:
            batch.append(piece)
            held_bytes += piece.byte_range[2] - piece.byte_range[1]
            if held_bytes >= _BATCH_BYTES:
                yield file, batch
                batch, held_bytes = [], 0
        if batch:
            yield file, batch


def _copy(files: Files, file: str, batch: list[Piece], is_inference: bool) -> None:
    """Copy on a thread of its own, in the *is_inference* mode of the thread that loads."""
    with files.cursor(file) as cursor, torch.inference_mode(is_inference), torch.no_grad():
        parts: list[tuple[int, memoryview]] = []
        copied: list[tuple[Piece, torch.Tensor]] = []
        for piece in batch:
            _, start, end = piece.byte_range
            if (memory := piece.memory()) is None:
                data = torch.empty(end - start, dtype=torch.uint8, device="cpu")
                scratch: Any = data.numpy()
                memory = memoryview(scratch)
                copied.append((piece, data))
            elif not piece.target.is_inference():
                increment_version(piece.target)  # torch does not see this write
            parts.append((start, memory))
        cursor.fill(parts)
        for piece, data in copied:
            piece.copy(data)


def check(name: str, info: TensorInfo, target: torch.Tensor) -> str:
    """Say why *target* cannot take the saved tensor; empty if it can."""
    dtype = framing.dtype_name(target.dtype)
    if tuple(target.shape) != info.shape:
        return f"{name} is {list(info.shape)} in the checkpoint and {list(target.shape)} here"
    if dtype != info.dtype:
        return f"{name} is {info.dtype} in the checkpoint and {dtype} here"
    if target.is_meta:
        return f"{name} is on the meta device here: call to_empty() on its module first"
    if target.is_inference() and not torch.is_inference_mode_enabled():
        return f"{name} is an inference tensor here: call load() inside torch.inference_mode()"
    mine = target.to_local() if isinstance(target, DTensor) else target
    if mine.layout != torch.strided:
        return f"{name} is {mine.layout} here: only tensors with plain elements can be filled"
    if any(step == 0 and size > 1 for step, size in zip(mine.stride(), mine.shape, strict=True)):
        return f"{name} is expanded here, several elements in one place: load into clone() of it"
    return ""
