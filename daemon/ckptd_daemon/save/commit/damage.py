"""Which committed steps are known not to be what was saved: a record of each, beside the steps.

Written once the bytes were read back and found bad. A record is of one attempt: it says nothing of what replaces the
step, and whoever finds the step whole again removes it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ckptd_daemon.save.attempts import Checkpoint
from ckptd_daemon.save.places import MANIFEST, SUMS, Place, check_image_name, step_number
from ckptd_daemon.store import durable
from ckptd_proto import errors
from ckptd_proto.crc import crc32c

logger = logging.getLogger(__name__)

FORMAT: Final = 1
_RECORDS: Final = ".corrupt"
_CHUNK_BYTES_MAX: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class Damage:
    """What is known to be bad of a committed step."""

    step: int
    attempt: str
    """Whose step it is: another attempt's may be good."""
    file: str
    chunk: int | None
    """Of that file; None if it is bad as a whole."""
    what: str
    """In words."""
    found_at: float
    """Seconds since the epoch."""


def inspect(checkpoint: Checkpoint, file: str, chunk: int | None) -> Damage | None:
    """Read an image's checksums and one chunk back; None if they are what was saved.

    Raises `InvalidArgument` if the checkpoint has no such image, or chunk, and `OSError`.
    """
    check_image_name(file)
    directory = checkpoint.place.step(checkpoint.step)
    try:
        images = json.loads((directory / MANIFEST).read_bytes())["images"]
        if file not in images:
            raise errors.InvalidArgument(f"{directory} has no image {file}; name one that it has")
        what = _wrong(directory / file, images[file], chunk)
    except (ValueError, KeyError, TypeError) as error:
        text = f"{directory} is not as ckptd writes it ({error!r}); run `ckptd verify` there"
        raise errors.InvalidArgument(text) from error
    if what is None:
        return None
    return Damage(checkpoint.step, checkpoint.attempt, file, chunk, what, time.time())


def note(place: Place, damage: Damage) -> None:
    """Have everyone know; durable when this returns."""
    path = _record(place, damage.step)
    durable.make_dirs(path.parent)
    durable.write_file(path, json.dumps({"format": FORMAT, **asdict(damage)}, indent=1).encode())


def forget(place: Place, step: int) -> None:
    """Remove what was noted of *step*, if anything was."""
    path = _record(place, step)
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return
    durable.sync_dir(path.parent)


def known(checkpoint: Checkpoint) -> Damage | None:
    """Return what is known to be bad of the checkpoint; of a later ckptd's, that it cannot be read."""
    if checkpoint.flaw is not None:
        what = checkpoint.flaw.what
        return Damage(checkpoint.step, checkpoint.attempt, MANIFEST, None, what, time.time())
    found = _read(_record(checkpoint.place, checkpoint.step))
    return found if found is not None and found.attempt == checkpoint.attempt else None


def among(place: Place, checkpoints: Iterable[Checkpoint]) -> dict[int, Damage]:
    """Return, by step, what is known to be bad of *checkpoints* of one run."""
    noted = _noted(place)
    found = ((one.step, known(one)) for one in checkpoints if one.step in noted or one.flaw)
    return {step: damage for step, damage in found if damage is not None}


def sweep(place: Place, checkpoints: Collection[Checkpoint]) -> None:
    """Remove what was noted of steps that are gone, or were replaced.

    What was noted of one whose manifest says nothing stays: it may be mended.
    """
    attempts = {one.step: one.attempt for one in checkpoints if one.flaw is None}
    unknown = {one.step for one in checkpoints if one.flaw is not None}
    for step in _noted(place) - unknown:
        found = _read(_record(place, step))
        if step not in attempts or (found is not None and found.attempt != attempts[step]):
            forget(place, step)


def _record(place: Place, step: int) -> Path:
    return place.directory / _RECORDS / f"{place.step(step).name}.json"


def _noted(place: Place) -> frozenset[int]:
    try:
        names = [path.stem for path in (place.directory / _RECORDS).glob("step-*.json")]
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    return frozenset(step for step in map(step_number, names) if step is not None)


def _read(path: Path) -> Damage | None:
    """Return the record; None if there is none, or it cannot be read: then the step is read again."""
    try:
        return _decode(json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s says nothing: %r", path, error)
        return None


def _decode(record: Mapping[str, Any]) -> Damage:
    if record["format"] != FORMAT:
        raise ValueError(f"format {record['format']}, and this ckptd knows {FORMAT}; update it")
    chunk = record["chunk"]
    return Damage(
        int(record["step"]),
        str(record["attempt"]),
        str(record["file"]),
        None if chunk is None else int(chunk),
        str(record["what"]),
        float(record["found_at"]),
    )


def _wrong(path: Path, image: Mapping[str, Any], chunk: int | None) -> str | None:
    """Say what is wrong with an image, as far as its checksums, length and one chunk can tell."""
    try:
        data = path.with_name(path.name + SUMS).read_bytes()
    except FileNotFoundError:
        return "its checksums are missing"
    if hashlib.sha256(data).hexdigest() != image["sums_sha256"]:
        return "its checksums are not what the manifest vouches for"
    try:
        fd, _ = durable.open_direct(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return "is missing"
    try:
        if (size := os.fstat(fd).st_size) != image["size_bytes"]:
            return f"has {size} bytes instead of {image['size_bytes']}"
        return None if chunk is None else _wrong_chunk(fd, path, json.loads(data), chunk)
    finally:
        os.close(fd)


def _wrong_chunk(fd: int, path: Path, sums: Mapping[str, Any], chunk: int) -> str | None:
    chunk_bytes, crcs = int(sums["chunk_bytes"]), sums["crc32c"]
    if not 0 <= chunk < len(crcs) or not 0 < chunk_bytes <= _CHUNK_BYTES_MAX:
        raise errors.InvalidArgument(f"{path} has {len(crcs)} chunks and no chunk {chunk}")
    block = memoryview(mmap.mmap(-1, chunk_bytes))
    start = chunk * chunk_bytes
    size = min(chunk_bytes, int(sums["size_bytes"]) - start)
    if durable.pread_all(fd, block, start) < size:
        return f"is cut off in chunk {chunk}"
    if crc32c(block[:size]) == crcs[chunk]:
        return None
    return f"chunk {chunk} (bytes {start} to {start + size}) is not what was saved"
