"""`latest` and `best` beside the steps of a run: links for people and scripts, never read by ckptd.

Each is replaced in one rename, and only after the step it names is durable.
"""

from __future__ import annotations

import errno
import logging
import secrets
from pathlib import Path
from typing import Final

from ckptd_daemon.save.keeping.retention import Retention, best
from ckptd_daemon.save.keeping.standing import Standing
from ckptd_daemon.save.places import Place, step_number
from ckptd_daemon.store import durable
from ckptd_proto import errors

logger = logging.getLogger(__name__)

_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP})


def move(place: Place, standing: Standing, rules: Retention | None) -> None:
    """Let the links of the run name what is good; a failure is logged, for they are a comfort.

    A listing may be old: what `latest` names and it does not know was committed since.
    """
    newest = None if standing.latest is None else standing.latest.step
    named = _step_of(place.directory / "latest")
    is_listed = any(one.step == named for one in standing.steps)
    if named is not None and not is_listed and place.step(named).exists():
        newest = named
    first = best(standing.good, rules, 1) if rules is not None and rules.monitor else []
    for name, step in (("latest", newest), ("best", first[0] if first else None)):
        try:
            _point(place, name, step)
        except (OSError, errors.CkptdError) as error:
            if getattr(error, "errno", None) not in _NO_LINKS:
                logger.warning("cannot move %s of %s: %s", name, place, error)


def _point(place: Place, name: str, step: int | None) -> None:
    link = place.directory / name
    if step is None:
        if _step_of(link) is not None:
            link.unlink()
        return
    if (link.exists() and not link.is_symlink()) or _step_of(link) == step:
        return  # a file of somebody else, or right as it is
    durable.sync_dir(place.directory)  # who commits the step may not have come so far yet
    beside = place.directory / f".{name}.{secrets.token_hex(4)}.tmp"
    beside.symlink_to(place.step(step).name)
    try:
        durable.publish(beside, link)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _step_of(link: Path) -> int | None:
    try:
        return step_number(str(link.readlink()))
    except OSError:
        return None
