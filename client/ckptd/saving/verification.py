"""Is a committed checkpoint what was saved? Every checksum read back, and whether all of it is there.

It needs no daemon and no torch: the manifest vouches for all else.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crc32c import crc32c

from ckptd.tensors import index
from ckptd.tensors.boxes import coverage_problem
from ckptd.tensors.images import Held
from ckptd.tensors.index import Index, Range
from ckptd_proto import errors

MANIFEST: Final = "manifest.json"
SUMS: Final = ".sums"
CHUNK_BYTES: Final = 4 << 20
_THREADS: Final = 4


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one file."""

    file: str
    what: str
    chunks: tuple[int, ...] = ()
    """Those that are not what was saved, of `chunk_bytes` each."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found in the directory of one checkpoint."""

    path: Path
    files: int
    size_bytes: int
    faults: tuple[Fault, ...]

    @property
    def is_sound(self) -> bool:
        """Everything is what was saved."""
        return not self.faults


def checkpoints_below(path: Path) -> list[Path]:
    """Return the checkpoint at *path*, or all committed ones of a run, an experiment or a root.

    Raises `NotFound` if there is none.
    """
    if path.is_dir() and (path.resolve().name.startswith("step-") or (path / MANIFEST).exists()):
        return [path]
    for pattern in ("step-*", "*/step-*", "*/*/step-*"):
        if found := list(path.glob(pattern)):
            return sorted(found, key=lambda one: (one.parent, len(one.name), one.name))
    raise errors.NotFound(f"there is no checkpoint at or below {path.absolute()}; name another")


def verify(directory: Path) -> Findings:
    """Read everything in *directory* back and compare it with what was saved.

    Nobody removes it meanwhile. Raises `Unimplemented` for a newer format, and `Aborted` if it is
    being removed.
    """
    manifest = read_manifest(directory)
    if isinstance(manifest, Fault):
        return Findings(directory, 1, 0, (manifest,))
    held = Held(directory)
    images = manifest["images"]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="ckptd-verify") as threads:
        found = threads.map(lambda name: _check(directory, name, images[name]), images)
        faults = [fault for fault in found if fault is not None]
    if not any(fault.file.startswith(index.NAME) for fault in faults):
        faults += _incomplete(directory, images)
    del held
    size = sum(int(image["size_bytes"]) for image in images.values())
    return Findings(directory, len(images) + 1, size, tuple(faults))


def read_manifest(directory: Path) -> dict[str, Any] | Fault:
    """Return what vouches for the checkpoint, or what is wrong with it."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["format"] != 1:
            text = f"{path} has format {manifest['format']}, and this ckptd reads 1; update it"
            raise errors.Unimplemented(text)
        if directory.resolve().name != f"step-{manifest['step']}":
            return Fault(MANIFEST, f"is that of step {manifest['step']}")
        for image in manifest["images"].values():
            int(image["size_bytes"]), str(image["sums_sha256"])
    except FileNotFoundError:
        return Fault(MANIFEST, "is missing: nothing says what was saved")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Fault(MANIFEST, f"is damaged ({error!r})")
    return dict(manifest)


def _check(directory: Path, name: str, image: dict[str, Any]) -> Fault | None:
    path = directory / name
    try:
        size = path.stat().st_size
        sums = read_sums(path, image)
        if sums is None:
            return Fault(name + SUMS, "is not what the manifest vouches for")
        if size != image["size_bytes"]:
            return Fault(name, f"has {size} bytes instead of {image['size_bytes']}")
        bad = tuple(
            n for n, (crc, want) in enumerate(zip(crcs(path), sums, strict=True)) if crc != want
        )
    except FileNotFoundError as error:
        return Fault(Path(error.filename).name, "is missing")
    except OSError as error:
        return Fault(name, f"cannot be read ({error.strerror})")
    return Fault(name, "is not what was saved", bad) if bad else None


def read_sums(path: Path, image: dict[str, Any]) -> list[int] | None:
    """Return the CRC32C of each chunk; None if they are not those that were saved."""
    data = path.with_name(path.name + SUMS).read_bytes()
    if hashlib.sha256(data).hexdigest() != image["sums_sha256"]:
        return None
    return list(json.loads(data)["crc32c"])


def crcs(path: Path) -> Iterator[int]:
    """Yield the CRC32C of each chunk of a file; raises `OSError`."""
    buffer = bytearray(CHUNK_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := _fill(file.fileno(), buffer):
            with memoryview(buffer) as view:
                yield crc32c(view[:count])
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _fill(fd: int, buffer: bytearray) -> int:
    done = 0
    with memoryview(buffer) as view:
        while done < len(view) and (count := os.readv(fd, [view[done:]])):
            done += count
    return done


def _incomplete(directory: Path, images: dict[str, Any]) -> list[Fault]:
    """Return what the index names and the images do not hold; they themselves are sound."""
    path = directory / index.NAME
    if index.NAME not in images:
        return [Fault(index.NAME, "is not in the manifest")]
    try:
        found = Index.decode(path.read_bytes(), where=str(path))
    except (ValueError, KeyError, TypeError) as error:
        return [Fault(index.NAME, f"is damaged ({error!r})")]

    def reaches_out(where: Range) -> bool:
        size = images.get(where.file, {"size_bytes": -1})["size_bytes"]
        return where.offset < 0 or where.offset + where.length > size

    faults = []
    for name, tensor in found.tensors.items():
        boxes = [chunk.box for chunk in tensor.chunks]
        if problem := coverage_problem(tensor.shape, boxes):
            faults.append(Fault(index.NAME, f"is incomplete: the pieces of {name} {problem}"))
        ranges = [chunk.range for chunk in tensor.chunks if math.prod(chunk.box[1])]
        if any(map(reaches_out, ranges)):
            faults.append(Fault(index.NAME, f"puts {name} outside of its file"))
    lost = [name for name, where in found.objects.items() if reaches_out(where)]
    return faults + [Fault(index.NAME, f"puts {name} outside of its file") for name in lost]
