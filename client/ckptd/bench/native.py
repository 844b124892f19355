"""What the machine brings at best: a C program that receives and writes, and does nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ckptd.bench.contestants import Run, run_program
from ckptd.bench.processes import last_line
from ckptd.bench.worker import Job

NO_COMPILER: Final = (
    "what the machine brings at best: no C compiler (apt-get install build-essential)"
)
_SOURCE: Final = Path(__file__).with_name("native.c")
_REQUEST_BYTES: Final = 8 << 20
"""An origin may be generous at the start of each reply; ours are for more."""
_BLOCK_BYTES: Final = 2 << 20
"""Of 1, 2, 4, and 8 MiB one of the best, for 8 connections as for 64."""


@dataclass(frozen=True, slots=True)
class Native:
    """So many connections of its own; the start of the program is not on its clock."""

    program: Path
    connections: int
    size_bytes: int
    version: str = ""

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"C, {self.connections} connections"

    @contextmanager
    def fetched(self, job: Job) -> Iterator[Run]:
        """Run it; it syncs what it wrote."""
        (name,) = job.names
        url, path = urlsplit(job.url + name), job.path(name)
        numbers = (self.connections, self.size_bytes, _REQUEST_BYTES, _BLOCK_BYTES)
        words = (self.program, url.hostname, url.port, url.path, *numbers, path)
        with tempfile.TemporaryFile("w+") as said:
            used_s, memory = run_program([str(word) for word in words], said)
            figures = {
                "wall_s": float(last_line(said)),
                "cpu_s": used_s,
                "peak_bytes": float(memory.peak_bytes),
            }
        yield Run(figures, {name: path})


def natives(folder: Path, counts: Sequence[int], size_bytes: int) -> list[Native]:
    """Return one for each number of connections, compiled into *folder*.

    None of them without a compiler that can: then nothing tells what the machine brings.
    """
    compiler, program = shutil.which("cc"), folder / "native"
    if compiler is None:
        return []
    command = [compiler, "-O2", "-pthread", "-o", str(program), str(_SOURCE)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        return []
    if not os.access(program, os.X_OK):  # a disk of which nothing may be run
        return []
    return [Native(program, count, size_bytes) for count in counts]
