"""`manifest.json`: what a committed checkpoint says of itself, and the list of those that do."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ckptd_daemon.save.attempts import Attempt, Checkpoint, Flaw
from ckptd_daemon.save.commit.proof import Receipt
from ckptd_daemon.save.places import MANIFEST, Place, check_name, step_number
from ckptd_proto import errors

logger = logging.getLogger(__name__)

FORMAT: Final = 1


class Misplaced(ValueError):
    """A manifest that is sound, and of another step: somebody has copied it here, or moved it."""


def encode(attempt: Attempt, receipts: Mapping[str, Receipt]) -> bytes:
    """Return the manifest of an attempt that has been proven complete."""
    job = attempt.job
    record = {
        "format": FORMAT,
        "attempt": attempt.id,
        "experiment": job.place.experiment,
        "run": job.place.run,
        "step": attempt.step,
        "incarnation": job.incarnation,
        "plan_hash": attempt.plan_hash,
        "world_size": job.world_size,
        "metrics": {name: _number_out(value) for name, value in attempt.metrics.items()},
        "committed_at": time.time(),
        "uid": job.uid,
        "images": {
            name: {"size_bytes": receipt.image.size_bytes, "sums_sha256": receipt.sums_sha256}
            for name, receipt in sorted(receipts.items())
        },
    }
    return json.dumps(record, indent=1, allow_nan=False).encode()


def decode(data: bytes, place: Place) -> Checkpoint:
    """Return what the manifest says.

    Raises `Unimplemented` for a newer format, `Misplaced` for another run's manifest and
    `ValueError` for what is none.
    """
    try:
        record = json.loads(data)
        _check_format(record["format"])
        return _checkpoint(record, place)
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"no manifest of ckptd: {error!r}") from error


def understood(data: bytes, place: Place, step: int) -> Checkpoint:
    """Return what the manifest of *step* says: with a `flaw`, and nothing else, if it is damaged.

    Raises `Unimplemented` for a newer format, `Misplaced` for the manifest of another step.
    """
    try:
        found = decode(data, place)
    except Misplaced:
        raise
    except ValueError as error:
        return _unknown(place, step, Flaw(f"is damaged ({error})" if data else "is empty"))
    if found.step != step:
        raise Misplaced(f"is that of step {found.step}")
    return found


def read(place: Place, step: int) -> Checkpoint | None:
    """Return the checkpoint committed as *step*, None if nothing has that name.

    Raises `AlreadyExists` if something else than a checkpoint of this step has it, and
    `Unimplemented` if a later ckptd wrote it.
    """
    directory = place.step(step)
    try:
        return _seen(place, step)
    except (FileNotFoundError, NotADirectoryError):
        if not directory.exists() or _is_empty_dir(directory):
            return None
        text = f"{directory} exists and is no checkpoint of ckptd; move it away or save elsewhere"
        raise errors.AlreadyExists(text) from None
    except Misplaced as error:
        text = f"the {MANIFEST} of {directory} {error}; move it away or save elsewhere"
        raise errors.AlreadyExists(text) from error
    except errors.Unimplemented as error:
        raise errors.Unimplemented(f"{directory} {error}") from error


def _is_empty_dir(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def committed(top: Path, experiment: str, run: str) -> list[Checkpoint]:
    """Return what is committed below *top*, by rising step; empty names mean every name.

    A step whose manifest is damaged, or of a newer format, has a `flaw`.
    """
    return [found for place in runs(top, experiment, run) for found in of_run(place)]


def of_run(place: Place) -> list[Checkpoint]:
    """Return what is committed in *place*, by rising step."""
    return sorted(_steps(place), key=lambda found: found.step)


def runs(top: Path, experiment: str, run: str) -> list[Place]:
    """Return the runs below *top* by name; empty names mean every name."""
    for kind, name in (("experiment", experiment), ("run", run)):
        if name:
            check_name(kind, name)
    found = [
        Place(top, experiment_dir.name, run_dir.name)
        for experiment_dir in _children(top, experiment)
        for run_dir in _children(experiment_dir, run)
    ]
    return sorted(found, key=lambda place: (place.experiment, place.run))


def _steps(place: Place) -> Iterator[Checkpoint]:
    for directory in _children(place.directory, ""):
        step = step_number(directory.name)
        if step is None:
            continue
        try:
            yield _seen(place, step)
        except FileNotFoundError:
            continue  # a directory of somebody else
        except errors.Unimplemented as error:
            yield _measured(_unknown(place, step, Flaw(str(error), is_newer=True)))
        except (OSError, Misplaced) as error:
            logger.warning("%s is not listed: %s", directory, error)


def _seen(place: Place, step: int) -> Checkpoint:
    found = understood((place.step(step) / MANIFEST).read_bytes(), place, step)
    return found if found.flaw is None else _measured(found)


def _unknown(place: Place, step: int, flaw: Flaw) -> Checkpoint:
    return Checkpoint(place, step, "", "", "", 0, {}, 0.0, flaw=flaw)


def _measured(found: Checkpoint) -> Checkpoint:
    """Return what of it the filesystem knows: its size, and when its manifest was written."""
    directory = found.place.step(found.step)
    try:
        written_at = (directory / MANIFEST).lstat().st_mtime
        size = sum(path.lstat().st_size for path in directory.iterdir())
    except OSError:
        return found  # it is being removed, or mended
    return replace(found, size_bytes=size, committed_at=written_at)


def _children(directory: Path, name: str) -> list[Path]:
    if name:
        return [directory / name]
    try:
        return [path for path in directory.iterdir() if not path.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError as error:
        text = f"the daemon may not read {directory}; make it readable for it"
        raise errors.PermissionDenied(text) from error


def _checkpoint(record: Mapping[str, Any], place: Place) -> Checkpoint:
    if (record["experiment"], record["run"]) != (place.experiment, place.run):
        raise Misplaced(f"is that of {record['experiment']}/{record['run']}")
    images = record["images"].values()
    if not all(isinstance(image["sums_sha256"], str) for image in images):
        raise TypeError("checksums are missing")
    return Checkpoint(
        place=place,
        step=int(record["step"]),
        attempt=str(record["attempt"]),
        incarnation=str(record["incarnation"]),
        plan_hash=str(record["plan_hash"]),
        size_bytes=sum(int(image["size_bytes"]) for image in images),
        metrics={str(name): float(value) for name, value in record["metrics"].items()},
        committed_at=float(record["committed_at"]),
        uid=int(record["uid"]) if "uid" in record else None,
    )


def _check_format(found: Any) -> None:
    """Raise `Unimplemented` if it is a later one, `ValueError` if it is none."""
    if isinstance(found, int) and found > FORMAT:
        text = f"is written in format {found}, and this ckptd knows {FORMAT}; update it"
        raise errors.Unimplemented(text)
    if found != FORMAT:
        raise ValueError(f"no manifest of ckptd: its format is {found!r}")


def _number_out(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
