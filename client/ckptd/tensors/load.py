"""Bytes of a checkpoint into tensors that exist: only what is needed, in parallel, checked."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from ckptd.tensors import boxes, framing
from ckptd.tensors.boxes import Box
from ckptd.tensors.images import Images
from ckptd.tensors.index import Chunk, TensorInfo
from ckptd.tensors.local import chunks
from ckptd_proto import errors

_BATCH_BYTES = 64 << 20
_THREADS_MAX = 4


@dataclass(frozen=True, slots=True)
class Wish:
    """A tensor to fill."""

    name: str
    info: TensorInfo
    target: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Piece:
    """The part of one saved chunk that one target takes."""

    chunk: Chunk
    part: Box
    """Relative to the chunk."""
    target: torch.Tensor
    """Has the sizes of the part."""

    @property
    def byte_range(self) -> tuple[str, int, int]:
        """The file, and the range in it that holds the part."""
        first, last = boxes.element_span(self.chunk.box[1], self.part)
        itemsize = self.target.dtype.itemsize
        where = self.chunk.range
        return where.file, where.offset + first * itemsize, where.offset + last * itemsize


def fill(images: Images, wishes: Iterable[Wish]) -> None:
    """Copy what is saved into each target; raises `DataLoss` before a wrong byte is copied."""
    pieces = sorted(
        (piece for wish in wishes for piece in _pieces(wish)), key=lambda piece: piece.byte_range
    )
    batches = list(_batches(pieces))
    threads = max(1, min(_THREADS_MAX, os.cpu_count() or 1, len(batches)))
    with ThreadPoolExecutor(threads, thread_name_prefix="ckptd-load") as pool:
        copies = [pool.submit(_copy, images, file, batch) for file, batch in batches]
        try:
            for copy in copies:
                copy.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _pieces(wish: Wish) -> Iterator[_Piece]:
    for offsets, local in chunks(wish.name, wish.target):
        target = local.detach()
        wanted = (offsets, tuple(target.shape))
        found = 0
        for chunk in wish.info.chunks:
            met = boxes.overlap(chunk.box, wanted)
            if met is None or not target.numel():
                continue
            found += math.prod(met[1])
            yield _Piece(
                chunk, _relative(met, chunk.box), _narrowed(target, _relative(met, wanted))
            )
        if found != target.numel():
            text = f"the index holds {found} of the {target.numel()} elements of {wish.name!r}"
            raise errors.DataLoss(f"{text}; load another step")


def _relative(box: Box, origin: Box) -> Box:
    return tuple(a - b for a, b in zip(box[0], origin[0], strict=True)), box[1]


def _narrowed(tensor: torch.Tensor, part: Box) -> torch.Tensor:
    for dim, (start, size) in enumerate(zip(*part, strict=True)):
        tensor = tensor.narrow(dim, start, size)
    return tensor


def _batches(pieces: list[_Piece]) -> Iterator[tuple[str, list[_Piece]]]:
    """Cut the work of each file into runs that threads take one by one."""
    for file, of_file in groupby(pieces, key=lambda piece: piece.byte_range[0]):
        batch: list[_Piece] = []
        held_bytes = 0
        for piece in of_file:
            batch.append(piece)
            held_bytes += piece.byte_range[2] - piece.byte_range[1]
            if held_bytes >= _BATCH_BYTES:
                yield file, batch
                batch, held_bytes = [], 0
        if batch:
            yield file, batch


def _copy(images: Images, file: str, batch: list[_Piece]) -> None:
    with images.cursor(file) as cursor, torch.no_grad():
        for piece in batch:
            _, start, end = piece.byte_range
            data = torch.empty(end - start, dtype=torch.uint8)
            memory: Any = data.numpy()
            cursor.read_into(memoryview(memory), start)
            strides = boxes.row_major(piece.chunk.box[1])
            piece.target.copy_(data.view(piece.target.dtype).as_strided(piece.part[1], strides))


def check(name: str, info: TensorInfo, target: torch.Tensor) -> str:
    """Say why *target* cannot take the saved tensor; empty if it can."""
    dtype = framing.dtype_name(target.dtype)
    if tuple(target.shape) != info.shape:
        return f"{name} is {list(info.shape)} in the checkpoint and {list(target.shape)} here"
    if dtype != info.dtype:
        return f"{name} is {info.dtype} in the checkpoint and {dtype} here"
    return ""
