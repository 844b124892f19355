"""`manifest.json`: what a committed checkpoint says of itself, and the list of those that do."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ckptd_daemon.save.attempts import Attempt, Checkpoint
from ckptd_daemon.save.commit.proof import Receipt
from ckptd_daemon.save.places import MANIFEST, Place, check_name, step_number
from ckptd_proto import errors

logger = logging.getLogger(__name__)

FORMAT: Final = 1


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

    Raises `Unimplemented` for a newer format and `ValueError` for what is no manifest.
    """
    record = json.loads(data)
    try:
        if record["format"] != FORMAT:
            text = f"written in format {record['format']}, and this ckptd knows {FORMAT}; update it"
            raise errors.Unimplemented(text)
        return _checkpoint(record, place)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no manifest of ckptd: {error!r}") from error


def read(place: Place, step: int) -> Checkpoint | None:
    """Return the checkpoint committed as *step*, None if nothing has that name.

    Raises `AlreadyExists` if something else than a checkpoint has it.
    """
    directory = place.step(step)
    try:
        return decode((directory / MANIFEST).read_bytes(), place)
    except (FileNotFoundError, NotADirectoryError):
        if not directory.exists() or _is_empty_dir(directory):
            return None
        text = f"{directory} exists and is no checkpoint of ckptd; move it away or save elsewhere"
        raise errors.AlreadyExists(text) from None
    except ValueError as error:
        text = f"{directory} has a damaged {MANIFEST} ({error}); move it away or save elsewhere"
        raise errors.AlreadyExists(text) from error
    except errors.Unimplemented as error:
        raise errors.Unimplemented(f"{directory} is {error}") from error


def _is_empty_dir(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def committed(top: Path, experiment: str, run: str) -> list[Checkpoint]:
    """Return what is committed below *top*, by rising step; empty names mean every name.

    A step of a newer format is left out and logged: this daemon cannot say what it is.
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
            checkpoint = decode((directory / MANIFEST).read_bytes(), place)
        except FileNotFoundError:
            continue  # a directory of somebody else
        except (OSError, ValueError, errors.Unimplemented) as error:
            logger.warning("%s is not listed: %s", directory, error)
            continue
        if checkpoint.step == step:
            yield checkpoint


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
        raise ValueError(f"made for {record['experiment']}/{record['run']}")
    return Checkpoint(
        place=place,
        step=int(record["step"]),
        attempt=str(record["attempt"]),
        incarnation=str(record["incarnation"]),
        plan_hash=str(record["plan_hash"]),
        size_bytes=sum(int(image["size_bytes"]) for image in record["images"].values()),
        metrics={str(name): float(value) for name, value in record["metrics"].items()},
        committed_at=float(record["committed_at"]),
        uid=int(record["uid"]) if "uid" in record else None,
    )


def _number_out(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
