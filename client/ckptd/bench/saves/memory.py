"""The bytes that are saved: in memory that outlives the jobs of all contestants.

So nobody's turn begins with touching gigabytes for the first time, and no rank's state is in its
figures.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TENSORS = 64
"""Of a rank."""
COLUMNS = 1024
"""Of a tensor of 32-bit floats."""
ROW_BYTES = 4 * COLUMNS


@contextmanager
def noise(ranks: int, size_bytes: int) -> Iterator[Path]:
    """Give a directory in shared memory with the tensors of all ranks; it is gone afterwards.

    A file each: torch's stagers copy the whole of what a tensor is a part of.
    """
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="ckptd-bench-") as folder:
        for rank in range(ranks):
            for number in range(TENSORS):
                tensor_file(Path(folder), rank, number).write_bytes(
                    os.urandom(size_bytes // TENSORS)
                )
        yield Path(folder)


def tensor_file(folder: Path, rank: int, number: int) -> Path:
    """Return where the rank's part of a tensor lies."""
    return folder / f"{rank}-{number}"


def rank_bytes(asked_bytes: int) -> int:
    """Return the nearest size of a rank's state that makes whole tensors, not above *asked*."""
    return max(1, asked_bytes // (TENSORS * ROW_BYTES)) * TENSORS * ROW_BYTES
