"""What a run's directory says of its own checkpoints: which are pinned, and the rules for the others.

Both lie where the checkpoints lie, so that every node's daemon keeps to them, and none of them is needed to read one.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from ckptd_daemon.save.keeping.retention import Retention
from ckptd_daemon.save.places import Place, step_number
from ckptd_daemon.store import durable
from ckptd_proto import errors

logger = logging.getLogger(__name__)

_PINS: Final = ".pins"
_RULES: Final = ".retention.json"


def pin(place: Place, step: int) -> None:
    """Have the step stay until it is unpinned; durable when this returns."""
    durable.make_dirs(place.directory / _PINS)
    durable.write_file(_pin(place, step), b"")


def unpin(place: Place, step: int) -> bool:
    """Let the step go like any other; False if it was not pinned."""
    try:
        _pin(place, step).unlink()
    except FileNotFoundError:
        return False
    durable.sync_dir(place.directory / _PINS)
    return True


def is_pinned(place: Place, step: int) -> bool:
    """Whether the step is pinned: asked by its name, for listings may be old."""
    return _pin(place, step).exists()


def pinned(place: Place) -> frozenset[int]:
    """Return the steps that are pinned."""
    try:
        names = [path.name for path in (place.directory / _PINS).iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    return frozenset(step for step in map(step_number, names) if step is not None)


def set_rules(place: Place, rules: Retention) -> None:
    """Have *rules* apply to the run from its next commit on; durable when this returns."""
    path = place.directory / _RULES
    if rules == (read_rules(place) or Retention()):
        return
    if rules.keeps_all:
        path.unlink()
        durable.sync_dir(path.parent)
        return
    durable.make_dirs(path.parent)
    durable.write_file(path, rules.encode())


def read_rules(place: Place) -> Retention | None:
    """Return the run's rules; None if nobody has set any, or they cannot be read: then all stays."""
    path = place.directory / _RULES
    try:
        return Retention.decode(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, errors.CkptdError) as error:
        logger.warning("nothing of %s is removed: %s: %s", place, path, error)
        return None


def _pin(place: Place, step: int) -> Path:
    return place.directory / _PINS / place.step(step).name
