"""Is a committed checkpoint what was saved? Every checksum read back, and whether all of it is there.

It needs no daemon and no torch: the manifest vouches for all else.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from ckptd.tensors import index
from ckptd.tensors.boxes import coverage_problem
from ckptd.tensors.copies import unreadable
from ckptd.tensors.images import Held, check_format
from ckptd.tensors.index import Index, Range
from ckptd_proto import errors
from ckptd_proto.crc import crc32c

MANIFEST: Final = "manifest.json"
SUMS: Final = ".sums"
CHUNK_BYTES: Final = 4 << 20
_THREADS: Final = 4
_ROUNDS: Final = 4
_PAUSE_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one file."""

    file: str
    what: str
    chunks: tuple[int, ...] = ()
    """Those that are not what was saved, of `chunk_bytes` each."""


_NO_MANIFEST: Final = Fault(MANIFEST, "is missing: nothing says what was saved")


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


def verify_below(path: Path) -> Iterator[Findings]:
    """Verify all of `checkpoints_below`, while others may remove and add some.

    What has gone since it was listed is skipped. Raises in the end `Aborted` if one is being
    removed, and does not go, and `Unimplemented` if a later ckptd wrote one.
    """
    done: set[Path] = set()
    newer: errors.Unimplemented | None = None
    for _ in range(_ROUNDS):
        busy: errors.Aborted | None = None
        try:
            listed = [one for one in checkpoints_below(path) if one not in done]
        except errors.NotFound:
            if not done:
                raise
            break
        has_gone = False
        for directory in listed:
            try:
                findings = verify(directory)
            except errors.NotFound:
                has_gone = True
            except errors.Aborted as error:
                busy = error
            except errors.Unimplemented as error:
                newer = newer or error
                done.add(directory)
            else:
                done.add(directory)
                yield findings
        if busy is None and not has_gone:
            break
        time.sleep(_PAUSE_S)
    for left in (newer, busy):
        if left is not None:
            raise left


def suspects(findings: Findings, images: Mapping[str, Any]) -> dict[str, int | None]:
    """Return the bad ones of *images*, and the first bad chunk of each; None if it is bad as a whole."""
    found: dict[str, int | None] = {}
    for fault in findings.faults:
        name = fault.file.removesuffix(SUMS)
        if name in images and found.get(name) is None:
            found[name] = fault.chunks[0] if fault.chunks else None
    return found


def noted(directory: Path) -> dict[str, Any] | None:
    """Return what a daemon has noted as corrupt of the checkpoint in *directory*, if it has."""
    try:
        attempt = json.loads((directory / MANIFEST).read_bytes())["attempt"]
        record = dict(json.loads(_note(directory).read_bytes()))
        return record if record["attempt"] == attempt else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def absolve(directory: Path) -> bool:
    """Have the checkpoint in *directory*, which was found sound, be good again for everyone.

    Says whether it was noted as corrupt. Raises `PermissionDenied` if this user may not say so.
    """
    note = _note(directory)
    try:
        note.unlink()
        sync_dir(note.parent)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        text = f"{directory} is sound and this user may not remove {note} ({error.strerror})"
        raise errors.PermissionDenied(f"{text}; run it as the daemon's user") from error
    return True


def _note(directory: Path) -> Path:
    real = directory.resolve()
    return real.parent / ".corrupt" / f"{real.name}.json"


def sync_dir(path: Path) -> None:
    """Make the entries of the directory durable."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def verify(directory: Path) -> Findings:
    """Read everything in *directory* back and compare it with what was saved.

    Nobody removes it meanwhile. Raises `Unimplemented` for a newer format, `Aborted` if it is
    being removed, and `NotFound` if it has been.
    """
    held = _held(directory)
    if held is None:
        return Findings(directory, 1, 0, (_NO_MANIFEST,))
    try:
        manifest = parsed(directory, held.read(MANIFEST))
    except OSError as error:
        manifest = _unread(MANIFEST, error)
    if isinstance(manifest, Fault):
        return _told(held, Findings(directory, 1, 0, (manifest,)))
    images = manifest["images"]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="ckptd-verify") as threads:
        found = threads.map(lambda name: _check(held, name, images[name]), images)
        faults = [fault for of_image in found for fault in of_image]
    if not any(fault.file.startswith(index.NAME) for fault in faults):
        faults += _incomplete(directory, held, images)
    size = sum(int(image["size_bytes"]) for image in images.values())
    return _told(held, Findings(directory, len(images) + 1, size, tuple(faults)))


def read_manifest(directory: Path) -> dict[str, Any] | Fault:
    """Return what vouches for the checkpoint, or what is wrong with it."""
    try:
        return parsed(directory, (directory / MANIFEST).read_bytes())
    except FileNotFoundError:
        return _NO_MANIFEST


def _held(directory: Path) -> Held | None:
    """Return the checkpoint, which nobody removes while that lives; None without a manifest."""
    for _ in range(2):  # it may have been another that was removed, or replaced, meanwhile
        try:
            return Held(directory)
        except FileNotFoundError:
            if not directory.is_dir():
                raise _gone(directory) from None
        except OSError as error:
            raise unreadable(directory / MANIFEST, error) from error
    return None


def _told(held: Held, findings: Findings) -> Findings:
    """Return *findings*; raises `NotFound` if there are faults, and it has gone meanwhile.

    Where the filesystem has no locks, nothing keeps a removal waiting.
    """
    if findings.faults and not held.is_at(findings.path):
        raise _gone(findings.path)
    return findings


def _gone(directory: Path) -> errors.NotFound:
    return errors.NotFound(f"{directory} was removed while it was looked at; name another")


def parsed(directory: Path, data: bytes) -> dict[str, Any] | Fault:
    """Return what *data* says as the manifest of the checkpoint, or what is wrong with it.

    Raises `Unimplemented` for a newer format.
    """
    if not data:
        return Fault(MANIFEST, "is empty")
    try:
        manifest = json.loads(data)
        check_format(directory / MANIFEST, manifest["format"])
        if directory.resolve().name != f"step-{manifest['step']}":
            return Fault(MANIFEST, f"is that of step {manifest['step']}")
        for image in manifest["images"].values():
            int(image["size_bytes"]), str(image["sums_sha256"])
        _check_told(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, OSError) as error:
        return Fault(MANIFEST, f"is damaged ({error!r})")
    return dict(manifest)


def _check_told(manifest: Mapping[str, Any]) -> None:
    """Raise `KeyError`, `TypeError` or `ValueError` if it lacks what daemons read in it, or people."""
    for name in ("attempt", "experiment", "run", "incarnation", "plan_hash"):
        if not isinstance(manifest[name], str):
            raise TypeError(f"{name} is {manifest[name]!r}")
    if not manifest["attempt"]:
        raise ValueError("it names no attempt")
    datetime.fromtimestamp(manifest["committed_at"])
    int(manifest["world_size"]), [float(value) for value in manifest["metrics"].values()]


def _check(held: Held, name: str, image: dict[str, Any]) -> list[Fault]:
    """Return all that is wrong with one image and its checksums."""
    faults: list[Fault] = []
    sums: list[int] | None = None
    try:
        sums = _read_sums(held, name, image)
        if sums is None:
            faults.append(Fault(name + SUMS, "is not what the manifest vouches for"))
    except OSError as error:
        faults.append(_unread(name + SUMS, error))
    try:
        with closing(os.fdopen(held.open(name), "rb", buffering=0)) as file:
            size = os.fstat(file.fileno()).st_size
            if size != image["size_bytes"]:
                faults.append(Fault(name, f"has {size} bytes instead of {image['size_bytes']}"))
            if sums is not None:
                faults += _bad_chunks(file.fileno(), name, image["size_bytes"], sums)
    except OSError as error:
        faults.append(_unread(name, error))
    return faults


def _unread(name: str, error: OSError) -> Fault:
    is_missing = isinstance(error, FileNotFoundError)
    return Fault(name, "is missing" if is_missing else f"cannot be read ({error.strerror})")


def _read_sums(held: Held, name: str, image: dict[str, Any]) -> list[int] | None:
    """Return the CRC32C of each chunk; None if they are not those that were saved."""
    data = held.read(name + SUMS)
    if hashlib.sha256(data).hexdigest() != image["sums_sha256"]:
        return None
    return list(json.loads(data)["crc32c"])


def _bad_chunks(fd: int, name: str, size_bytes: int, sums: Sequence[int]) -> Iterator[Fault]:
    """Yield which chunks of a file are not what was saved, and which cannot be read, and why."""
    buffer = bytearray(CHUNK_BYTES)
    bad: list[int] = []
    unread: dict[str, list[int]] = defaultdict(list)
    with memoryview(buffer) as view:
        for chunk, want in enumerate(sums):
            start = chunk * CHUNK_BYTES
            part = view[: min(CHUNK_BYTES, size_bytes - start)]
            try:
                count = _fill(fd, part, start)
            except OSError as error:
                unread[error.strerror or str(error)].append(chunk)
                continue
            if count < len(part) or crc32c(part) != want:
                bad.append(chunk)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if bad:
        yield Fault(name, "is not what was saved", tuple(bad))
    for why, chunks in unread.items():
        yield Fault(name, f"cannot be read ({why})", tuple(chunks))


def _fill(fd: int, target: memoryview, start: int) -> int:
    done = 0
    while done < len(target) and (count := os.preadv(fd, [target[done:]], start + done)):
        done += count
    return done


def _incomplete(directory: Path, held: Held, images: dict[str, Any]) -> list[Fault]:
    """Return what the index names and the images do not hold; they themselves are sound."""
    path = directory / index.NAME
    if index.NAME not in images:
        return [Fault(index.NAME, "is not in the manifest")]
    try:
        found = Index.decode(held.read(index.NAME), where=str(path))
    except OSError as error:
        return [_unread(index.NAME, error)]
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
