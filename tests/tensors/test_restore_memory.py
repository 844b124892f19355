"""Loading takes a bounded amount of memory besides the state, however large its tensors are."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ckptd.tensors import load
from ckptd.tensors.cuts import WINDOW_BYTES
from ckptd.tensors.pieces import Stored, pieces_of
from ckptd.tensors.plain import PlainFiles
from ckptd_proto.crc import crc32c

MIB = 1 << 20
CHUNK_BYTES = 4 * MIB
PROGRAM = Path(__file__).parent / "programs" / "loading.py"
BOUND_BYTES = load.SCRATCH_BYTES + 4 * CHUNK_BYTES + 32 * MIB
"""Scratch, a chunk for each thread, and what threads and allocators take."""


def committed(directory: Path, rows: int, columns: int) -> Path:
    """Write a checkpoint of one int32 tensor, whose elements count up."""
    size_bytes = 4 * rows * columns
    box = {"offsets": [0, 0], "sizes": [rows, columns]}
    chunk = {**box, "file": "image", "offset": 0, "length": size_bytes}
    tensor = {"dtype": "int32", "shape": [rows, columns], "chunks": [chunk]}
    index = json.dumps({"format": 1, "tensors": {"w": tensor}, "objects": {}, "tree": []})
    (directory / "index.json").write_text(index)
    with (directory / "image").open("wb") as file:
        for first in range(0, rows * columns, MIB):
            last = min(first + MIB, rows * columns)
            file.write(np.arange(first, last, dtype=np.int32).tobytes())
    images = {}
    for name in ("index.json", "image"):
        data = (directory / name).read_bytes()
        starts = range(0, len(data), CHUNK_BYTES)
        crcs = [crc32c(memoryview(data)[at : at + CHUNK_BYTES]) for at in starts]
        sums = {"format": 1, "size_bytes": len(data), "chunk_bytes": CHUNK_BYTES, "crc32c": crcs}
        written = json.dumps(sums).encode()
        (directory / f"{name}.sums").write_bytes(written)
        images[name] = {
            "size_bytes": len(data),
            "sums_sha256": hashlib.sha256(written).hexdigest(),
        }
    manifest = {"format": 1, "attempt": "a", "images": images}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


@pytest.mark.parametrize(
    ("how", "rows", "columns"),
    [("column", 24, 4 * MIB), ("column", 24 * 1024, 4 * 1024), ("transposed", 24, 4 * MIB)],
    ids=["long rows", "short rows", "transposed"],
)
def test_a_load_takes_no_more_memory_than_it_says(
    tmp_path: Path, how: str, rows: int, columns: int
) -> None:
    where = committed(tmp_path, rows, columns)  # 384 MiB, far more than the bound
    done = subprocess.run(
        [sys.executable, str(PROGRAM), how, str(where)],
        env=dict(os.environ) | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    is_right, taken_bytes = done.stdout.split()
    assert is_right == "True"
    assert int(taken_bytes) < BOUND_BYTES < 4 * rows * columns // 2


LAYOUTS: list[tuple[str, Callable[[], torch.Tensor]]] = [
    ("contiguous", lambda: torch.zeros(40, 300, dtype=torch.float64)),
    ("transposed", lambda: torch.zeros(300, 40, dtype=torch.float64).t()),
    ("every other", lambda: torch.zeros(40, 600, dtype=torch.float64)[:, ::2]),
    ("negated", lambda: torch._neg_view(torch.zeros(40, 300, dtype=torch.float64))),
]


@pytest.mark.parametrize("layout", [layout for _, layout in LAYOUTS], ids=[n for n, _ in LAYOUTS])
@pytest.mark.parametrize("before_bytes", [0, 3, WINDOW_BYTES - 50_001])
def test_whatever_a_target_looks_like_it_is_filled_to_the_bit(
    tmp_path: Path, layout: Callable[[], torch.Tensor], before_bytes: int
) -> None:
    whole = torch.randn(50, 400, dtype=torch.float64)
    with (tmp_path / "file").open("wb") as file:
        file.seek(before_bytes)
        file.write(whole.numpy().tobytes())
    stored = Stored("file", before_bytes, whole.dtype, (400, 1))
    target = layout()
    load.fill(PlainFiles(tmp_path), pieces_of(stored, ((7, 60), (40, 300)), target))
    assert torch.equal(target, whole[7:47, 60:360])


def test_a_stored_transposed_tensor_is_filled_to_the_bit(tmp_path: Path) -> None:
    whole = torch.randn(4000, 3000).t()
    (tmp_path / "file").write_bytes(whole.t().numpy().tobytes())
    stored = Stored("file", 0, whole.dtype, tuple(whole.stride()))
    target = torch.zeros(3000, 4000)
    load.fill(PlainFiles(tmp_path), pieces_of(stored, ((0, 0), (3000, 4000)), target))
    assert torch.equal(target, whole)


def test_only_the_chunks_that_a_column_needs_are_read() -> None:
    row = 16 * CHUNK_BYTES
    stored = Stored("file", 0, torch.uint8, (row, 1))
    ranges = stored.ranges(((0, 5 * CHUNK_BYTES), (3, 100)))
    wanted = load.wanted_chunks(ranges, lambda name: CHUNK_BYTES)
    assert wanted == {"file": 1 << 5 | 1 << 21 | 1 << 37}
