"""Which life of a run is the present one: on disk, where its checkpoints are, for every node.

A daemon meets the ranks of two lives in any order, perhaps after a restart, and two lives may be
on different nodes; each must know which is newer.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckptd_daemon.save.attempts import JobKey
from ckptd_daemon.save.places import Place
from ckptd_daemon.store import durable
from ckptd_proto import errors

logger = logging.getLogger(__name__)

_FENCED_MAX: Final = 64  # incarnations remembered per run
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class _Record:
    """The incarnation that may save into a run, and those that may not any more."""

    present: str
    fenced: tuple[str, ...]


def claim(key: JobKey) -> tuple[str, ...]:
    """Note on disk that *key* is the present life of its run; return the earlier, the last one last.

    Raises if it was fenced before.
    """
    file = key.place.fence
    record = _decode(_read(key.place), file)
    if (failure := _refusal(record, key)) is not None:
        raise failure
    if record is not None and record.present == key.incarnation:
        return record.fenced
    fenced = () if record is None else (*record.fenced, record.present)[-_FENCED_MAX:]
    fields = {"format": _FORMAT, "present": key.incarnation, "fenced": fenced}
    durable.make_dirs(file.parent)
    durable.write_file(file, json.dumps(fields).encode())
    return fenced


def check(key: JobKey) -> None:
    """Raise `FailedPrecondition` if a newer life of the run has begun, on whatever node."""
    if (failure := refusal(_read(key.place), key)) is not None:
        raise failure


def lives(place: Place) -> tuple[str, ...]:
    """Return the lives of the run, as far as they are remembered, the present one last."""
    try:
        record = _decode(_read(place), place.fence)
    except errors.FailedPrecondition as newer:
        logger.warning("in which order steps were saved only their clocks tell: %s", newer)
        return ()
    return () if record is None else (*record.fenced, record.present)


def refusal(data: bytes | None, key: JobKey) -> errors.CkptdError | None:
    """Return why *key* may not save any more, by what the fence says; None if it may."""
    try:
        return _refusal(_decode(data, key.place.fence), key)
    except errors.FailedPrecondition as newer:
        return newer


def _refusal(record: _Record | None, key: JobKey) -> errors.CkptdError | None:
    if record is None or key.incarnation not in record.fenced:
        return None
    return fenced(key.place, key.incarnation, record.present)


def fenced(place: Place, incarnation: str, present: str) -> errors.FailedPrecondition:
    """Return the error for all that *incarnation* still wants."""
    return errors.FailedPrecondition(
        f"a newer incarnation ({present}) of {place.experiment}/{place.run} "
        f"saves now; this one ({incarnation}) may not any more"
    )


def _read(place: Place) -> bytes | None:
    try:
        return place.fence.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _decode(data: bytes | None, file: Path) -> _Record | None:
    """Return what is known of the run; None, and a line in the log, if it cannot be read.

    Raises `FailedPrecondition` if a newer daemon has written it.
    """
    try:
        if data is None:
            return None
        fields = json.loads(data)
        if (found := fields["format"]) != _FORMAT:
            text = f"{file} has format {found}, and this daemon reads {_FORMAT}; start a newer one"
            raise errors.FailedPrecondition(text)
        return _Record(str(fields["present"]), tuple(map(str, fields["fenced"])))
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged and begun anew, it fences nobody: %r", file, error)
        return None
