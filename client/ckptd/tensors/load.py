"""Bytes of a checkpoint into tensors that exist: only what is needed, in parallel, checked."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from queue import SimpleQueue
from typing import Any, Final, Protocol

import torch
from torch.autograd.graph import increment_version
from torch.distributed.tensor import DTensor

from ckptd.tensors import boxes, framing, values
from ckptd.tensors.cuts import WINDOW_BYTES
from ckptd.tensors.images import Images
from ckptd.tensors.index import Index, TensorInfo
from ckptd.tensors.local import chunks
from ckptd.tensors.pieces import ByteRange, Piece, Stored, narrowed, pieces_of, relative
from ckptd_proto import errors

_THREADS: Final = 4
"""However few cores there are: a disk wants several reads at once."""
SCRATCH_BYTES: Final = _THREADS * WINDOW_BYTES
"""The memory that a load takes for what is not read into its target, at most."""
_ALIGNMENT: Final = 16


@dataclass(frozen=True, slots=True)
class Wish:
    """A tensor to fill."""

    name: str
    info: TensorInfo
    target: torch.Tensor


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


def wanted_chunks(
    ranges: Iterable[ByteRange], chunk_bytes: Callable[[str], int]
) -> Mapping[str, int]:
    """Return which chunks of each image the ranges lie in: bit n is chunk n."""
    found: dict[str, int] = defaultdict(int)
    for name, start, end in ranges:
        first, last = start // chunk_bytes(name), (end - 1) // chunk_bytes(name)
        found[name] |= (1 << last + 1) - (1 << first)
    return found


def fill(files: Files, wanted: Iterable[Piece], *, place: tuple[int, int] = (0, 1)) -> None:
    """Copy what is saved into the target of each piece, none of them empty.

    What cannot be read into its target (on a GPU, not contiguous, or with gaps in the file) goes
    through memory of ours: at most `SCRATCH_BYTES`, however much it is.

    Where *place* says that this is one of several who read the same, each begins elsewhere, and
    finds in the page cache what others have read by then. Raises `DataLoss`: all targets are void.
    """
    batches = list(_batches(sorted(wanted, key=lambda piece: piece.byte_range)))
    first = len(batches) * place[0] // place[1]
    batches = [*batches[first:], *batches[:first]]
    threads = max(1, min(_THREADS, len(batches)))
    copying = _Copying(files, threads)
    with ThreadPoolExecutor(threads, thread_name_prefix="ckptd-load") as pool:
        copies = [pool.submit(copying.copy, file, batch) for file, batch in batches]
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
            yield from pieces_of(
                Stored.of(chunk, target.dtype),
                relative(met, chunk.box),
                narrowed(target, relative(met, wanted)),
            )
        if found != target.numel():
            text = f"the index holds {found} of the {target.numel()} elements of {wish.name!r}"
            raise errors.DataLoss(f"{text}; load another step")


def _batches(pieces: list[Piece]) -> Iterator[tuple[str, list[Piece]]]:
    """Cut the work into runs that threads take one by one: what lies in one window of a file.

    So no chunk is read for two of them, and none needs more than `WINDOW_BYTES` of scratch.
    """
    for (file, _), of_window in groupby(pieces, key=_window):
        batch: list[Piece] = []
        scratch_bytes = 0
        for piece in of_window:
            needed = _aligned(piece.scratch_bytes)
            if batch and scratch_bytes + needed > WINDOW_BYTES:  # two want the same bytes
                yield file, batch
                batch, scratch_bytes = [], 0
            batch.append(piece)
            scratch_bytes += needed
        yield file, batch


def _window(piece: Piece) -> tuple[str, int]:
    file, start, _ = piece.byte_range
    return file, start // WINDOW_BYTES


def _aligned(size_bytes: int) -> int:
    """Return *size_bytes* up to where elements of every dtype may begin."""
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT


class _Copying:
    """What the threads of one load share."""

    def __init__(self, files: Files, threads: int) -> None:
        self._files = files
        self._is_inference = torch.is_inference_mode_enabled()
        self._scratches: SimpleQueue[torch.Tensor | None] = SimpleQueue()
        for _ in range(threads):  # all that is ever read aside at once
            self._scratches.put(None)

    def copy(self, file: str, batch: list[Piece]) -> None:
        """Fill the targets of *batch*, in the inference mode of the thread that loads."""
        scratch = self._scratches.get()
        try:
            with torch.inference_mode(self._is_inference), torch.no_grad():
                if scratch is None and any(piece.scratch_bytes for piece in batch):
                    scratch = torch.empty(WINDOW_BYTES, dtype=torch.uint8, device="cpu")
                self._fill(file, batch, scratch)
        finally:
            self._scratches.put(scratch)

    def _fill(self, file: str, batch: list[Piece], scratch: torch.Tensor | None) -> None:
        parts: list[tuple[int, memoryview]] = []
        aside: list[tuple[Piece, torch.Tensor]] = []
        taken = 0
        for piece in batch:
            _, start, _ = piece.byte_range
            if scratch is not None and (needed := piece.scratch_bytes):
                data = scratch[taken : taken + needed]
                taken += _aligned(needed)
                memory: Any = data.numpy()
                parts.append((start, memoryview(memory)))
                aside.append((piece, data))
                continue
            if not piece.target.is_inference():
                increment_version(piece.target)  # torch does not see this write
            parts.append((start, piece.memory()))
        with self._files.cursor(file) as cursor:
            cursor.fill(parts)
        for piece, data in aside:
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
