"""The bar: how fast the same disk takes, or gives, the same bytes past the page cache, alone."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ckptd.bench.figures import Reading
from ckptd.bench.processes import FailedError, version_of

BLOCK_BYTES = 8 << 20
THREADS = 3
FIO_DEPTH = "8"


@dataclass(frozen=True, slots=True)
class Bar:
    """Who writes, or reads."""

    name: str
    version: str

    def write(self, folder: Path, size_bytes: int) -> Reading:
        """Write and sync *size_bytes* in *folder*; raises `FailedError`."""
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            path = Path(scratch, "bar")
            if self.is_fio:
                took_s = _by_fio(path, size_bytes, "write", "--end_fsync=1")
            else:
                took_s = _own_write(path, size_bytes)
        return {"durable_s": took_s}

    def read(self, folder: Path, size_bytes: int) -> Reading:
        """Read *size_bytes* that lie in a file in *folder*; raises `FailedError`."""
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            path = Path(scratch, "bar")
            _own_write(path, size_bytes)
            took_s = (
                _by_fio(path, size_bytes, "read") if self.is_fio else _own_read(path, size_bytes)
            )
        return {"restored_s": took_s}

    @property
    def versions(self) -> list[tuple[str, str]]:
        """What the report names, if it has a version."""
        return [("fio", self.version)] if self.version else []

    @property
    def is_fio(self) -> bool:
        """Whether it is the program everybody knows."""
        return self.name.startswith("fio")


def bar() -> Bar:
    """Return fio if it is installed, else threads of our own that do the same."""
    if shutil.which("fio") is None:
        return Bar("direct I/O, own threads", "")
    said = subprocess.run(["fio", "--version"], capture_output=True, text=True, check=False).stdout
    return Bar("fio, direct I/O", version_of(said))


def _by_fio(path: Path, size_bytes: int, what: str, *more: str) -> float:
    command = ["fio", "--name=bar", f"--filename={path}", f"--rw={what}", "--direct=1"]
    command += [f"--bs={min(BLOCK_BYTES, size_bytes)}", f"--size={size_bytes}"]
    command += ["--ioengine=libaio", f"--iodepth={FIO_DEPTH}", *more, "--output-format=json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FailedError(f"fio ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    runtime_ms: float = json.loads(done.stdout)["jobs"][0][what]["runtime"]
    return max(1, runtime_ms) / 1e3  # it counts whole milliseconds; nothing takes none


def _own_write(path: Path, size_bytes: int) -> float:
    def write(fd: int, block: memoryview, start: int) -> None:
        os.pwrite(fd, block, start)

    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    try:
        os.posix_fallocate(fd, 0, size_bytes)
        took_s = _by_threads(fd, size_bytes, write)
        began_s = time.perf_counter()
        os.fsync(fd)
        return took_s + time.perf_counter() - began_s
    finally:
        os.close(fd)


def _own_read(path: Path, size_bytes: int) -> float:
    def read(fd: int, block: memoryview, start: int) -> None:
        os.preadv(fd, [block], start)

    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        return _by_threads(fd, size_bytes, read)
    finally:
        os.close(fd)


def _by_threads(fd: int, size_bytes: int, act: Callable[[int, memoryview, int], None]) -> float:
    """Have threads *act* on block after block, and return how long they took together."""
    starts = iter(range(0, size_bytes, BLOCK_BYTES))
    failures: list[OSError] = []

    def work(block: mmap.mmap) -> None:
        with memoryview(block) as view:
            try:
                for start in starts:  # each number comes once, whichever thread asks
                    act(fd, view[: min(BLOCK_BYTES, size_bytes - start)], start)
            except OSError as error:
                failures.append(error)

    noise = os.urandom(BLOCK_BYTES)
    blocks = [mmap.mmap(-1, BLOCK_BYTES) for _ in range(THREADS)]
    for block in blocks:
        block.write(noise)
    threads = [threading.Thread(target=work, args=(block,)) for block in blocks]
    began_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.perf_counter() - began_s
    if failures:
        raise FailedError(f"direct I/O failed: {failures[0]}")
    return took_s
