"""Checkpoints laid out by the client and written to a directory without any daemon."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ckptd.tensors import index, metadata, plan, stage
from ckptd.tensors.copying import Copying
from ckptd.tensors.local import take
from ckptd.tensors.values import Encoder


def write(directory: Path, *states: Any) -> Path:
    """Write the checkpoint that ranks holding *states* would make together."""
    directory.mkdir(parents=True, exist_ok=True)
    locals_: Sequence[Any] = [take(state, Encoder()) for state in states]
    agreed = plan.agree([local.plan for local in locals_])
    for rank, local in enumerate(locals_):
        for name, size_bytes in agreed.images[rank].items():
            image = memoryview(bytearray(size_bytes))
            mine = (placed for placed in agreed.of_rank(rank) if placed.file == name)
            stage.fill(image, mine, local.sources, Copying(()))
            (directory / name).write_bytes(image)
    (directory / metadata.NAME).write_bytes(metadata.encode(agreed))
    (directory / index.NAME).write_bytes(index.encode(agreed))
    return directory
