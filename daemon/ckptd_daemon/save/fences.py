"""Which life of a run is the present one, on disk: it outlasts the daemon.

A restarted daemon meets the ranks of two lives in any order, and must know which is newer.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckptd_daemon.save.attempts import JobKey
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


def check_fence(directory: Path, key: JobKey) -> None:
    """Note on disk that *key* is the present life of its run; raises if it was fenced before."""
    place = key.place
    words = json.dumps([str(place.root), place.experiment, place.run])
    file = directory / f"{hashlib.sha256(words.encode()).hexdigest()[:32]}.json"
    record = _read(file)
    if record is not None and key.incarnation in record.fenced:
        text = (
            f"a newer incarnation ({record.present}) of {place.experiment}/{place.run} "
            f"saves now; this one ({key.incarnation}) may not any more"
        )
        raise errors.FailedPrecondition(text)
    if record is not None and record.present == key.incarnation:
        return
    fenced = () if record is None else (*record.fenced, record.present)[-_FENCED_MAX:]
    fields = {"format": _FORMAT, "present": key.incarnation, "fenced": fenced}
    durable.make_dirs(directory, mode=0o700)
    durable.write_file(file, json.dumps(fields).encode(), mode=0o600)


def _read(file: Path) -> _Record | None:
    """Return what is known of the run; None, and a line in the log, if it cannot be read.

    Raises `FailedPrecondition` if a newer daemon has written it.
    """
    try:
        fields = json.loads(file.read_bytes())
        if (found := fields["format"]) != _FORMAT:
            text = f"{file} has format {found}, and this daemon reads {_FORMAT}; start a newer one"
            raise errors.FailedPrecondition(text)
        return _Record(str(fields["present"]), tuple(map(str, fields["fenced"])))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged and begun anew, it fences nobody: %r", file, error)
        return None
