"""The bar: how fast the same disk takes the same bytes, past the page cache, with nothing else."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ckptd.bench.figures import Reading
from ckptd.bench.processes import FailedError, version_of

BLOCK_BYTES = 8 << 20
WRITERS = 3
FIO_DEPTH = "8"


@dataclass(frozen=True, slots=True)
class Bar:
    """Who writes."""

    name: str
    version: str

    def write(self, folder: Path, size_bytes: int) -> Reading:
        """Write and sync *size_bytes* in *folder*; raises `FailedError`."""
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            path = Path(scratch, "bar")
            return {
                "durable_s": _by_fio(path, size_bytes) if self.is_fio else _own(path, size_bytes)
            }

    @property
    def versions(self) -> list[tuple[str, str]]:
        """What the report names, if it has a version."""
        return [("fio", self.version)] if self.version else []

    @property
    def is_fio(self) -> bool:
        """Whether it is the program everybody knows."""
        return self.name.startswith("fio")


def bar() -> Bar:
    """Return fio if it is installed, else a writer of our own that does the same."""
    if shutil.which("fio") is None:
        return Bar("direct I/O, own writer", "")
    said = subprocess.run(["fio", "--version"], capture_output=True, text=True, check=False).stdout
    return Bar("fio, direct I/O", version_of(said))


def _by_fio(path: Path, size_bytes: int) -> float:
    command = ["fio", "--name=bar", f"--filename={path}", "--rw=write", "--direct=1"]
    command += [f"--bs={BLOCK_BYTES}", f"--size={size_bytes}", "--ioengine=libaio"]
    command += [f"--iodepth={FIO_DEPTH}", "--end_fsync=1", "--output-format=json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FailedError(f"fio ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    runtime_ms: float = json.loads(done.stdout)["jobs"][0]["write"]["runtime"]
    return runtime_ms / 1e3


def _own(path: Path, size_bytes: int) -> float:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    try:
        with mmap.mmap(-1, BLOCK_BYTES) as block:
            block.write(os.urandom(BLOCK_BYTES))
            os.posix_fallocate(fd, 0, size_bytes)
            began_s = time.perf_counter()
            starts = iter(range(0, size_bytes, BLOCK_BYTES))
            failures: list[OSError] = []
            writers = [
                threading.Thread(target=_write, args=(fd, block, starts, size_bytes, failures))
                for _ in range(WRITERS)
            ]
            for writer in writers:
                writer.start()
            for writer in writers:
                writer.join()
            os.fsync(fd)
            took_s = time.perf_counter() - began_s
    finally:
        os.close(fd)
    if failures:
        raise FailedError(f"direct writing to {path.parent} failed: {failures[0]}")
    return took_s


def _write(
    fd: int, block: mmap.mmap, starts: Iterator[int], size_bytes: int, failures: list[OSError]
) -> None:
    view = memoryview(block)
    try:
        for start in starts:  # an iterator over a range gives each number once, in any thread
            os.pwrite(fd, view[: min(BLOCK_BYTES, size_bytes - start)], start)
    except OSError as error:
        failures.append(error)
    finally:
        view.release()
