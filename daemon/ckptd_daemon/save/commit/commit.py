"""The one atomic rename that makes a checkpoint exist, and the removal of what never will."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from ckptd_daemon.save import members
from ckptd_daemon.save.attempts import Attempt, Checkpoint, taken
from ckptd_daemon.save.commit import manifests, owner, removal
from ckptd_daemon.save.commit.proof import Receipt, prove
from ckptd_daemon.save.places import MANIFEST, Place
from ckptd_daemon.store import durable
from ckptd_proto import errors

logger = logging.getLogger(__name__)

_NOTE: Final = ".abort"  # of attempts of several daemons, see `protocol`
_REPLACED: Final = ".replaced"  # an old step on its way out, until the new one is in place


def directory_of(attempt: Attempt) -> Path:
    """Return where the attempt's files are until it is committed."""
    return attempt.job.place.attempts / attempt.id


def commit(attempt: Attempt, receipts: list[Receipt]) -> Checkpoint:
    """Prove the attempt complete and make it the step; returns once that is durable.

    If the same life of the job has committed the step by the same plan, that one is the answer.
    """
    proven = prove(attempt.plan, attempt.plan_hash, receipts)
    directory, place = directory_of(attempt), attempt.job.place
    durable.write_new(directory / MANIFEST, manifests.encode(attempt, proven))
    durable.sync_dir(directory)
    try:
        durable.publish(directory, place.step(attempt.step))
    except (OSError, errors.CkptdError) as error:
        return _settle_doubt_or_undo(attempt, error)
    return _present(attempt)


def _settle_doubt_or_undo(attempt: Attempt, error: Exception) -> Checkpoint:
    try:
        return _settle_doubt(attempt, error)
    except (OSError, errors.CkptdError):
        try:
            _undo(attempt)
        except (OSError, errors.CkptdError) as failure:
            logger.warning("step %s may be there although given up: %s", attempt.step, failure)
        raise


def _undo(attempt: Attempt) -> None:
    """Take the step back, which a power cut could undo as well, and put back what it replaced."""
    ours, theirs = directory_of(attempt), attempt.job.place.step(attempt.step)
    found = manifests.read(attempt.job.place, attempt.step)
    if found is not None and found.attempt == attempt.id:
        if ours.exists():  # the two were exchanged
            durable.swap(ours, theirs)
            return
        durable.rename(theirs, ours)
    if _aside(attempt).exists():
        durable.rename(_aside(attempt), theirs)


def _settle_doubt(attempt: Attempt, error: Exception) -> Checkpoint:
    """Return the checkpoint if the step is ours after all, or becomes it; the manifest decides."""
    place = attempt.job.place
    found = manifests.read(place, attempt.step)
    if found is None:
        raise _typed(error, attempt)
    if found.attempt == attempt.id:
        durable.sync_dir(place.directory)
        return found
    if attempt.replaces:
        return _replace(attempt)
    if attempt.is_same(found):
        discard(attempt)
        return found
    raise taken(found) from error


def _typed(error: Exception, attempt: Attempt) -> errors.CkptdError:
    if isinstance(error, errors.CkptdError):
        return error
    text = f"cannot commit {attempt.job.place.step(attempt.step)}: {error}; look at the filesystem"
    typed = errors.FailedPrecondition(text)
    typed.__cause__ = error
    return typed


def _replace(attempt: Attempt) -> Checkpoint:
    ours, theirs = directory_of(attempt), attempt.job.place.step(attempt.step)
    if not durable.exchange(ours, theirs):
        durable.publish(theirs, _aside(attempt))
        durable.publish(ours, theirs)
        durable.publish(_aside(attempt), ours)
    checkpoint = _present(attempt)
    discard(attempt)
    return checkpoint


def _aside(attempt: Attempt) -> Path:
    return directory_of(attempt).with_name(f"{attempt.id}{_REPLACED}")


def _present(attempt: Attempt) -> Checkpoint:
    found = manifests.read(attempt.job.place, attempt.step)
    if found is None or found.attempt != attempt.id:
        text = f"{attempt.job.place.step(attempt.step)} was changed by somebody else; save again"
        raise errors.Aborted(text)
    return found


def settled(attempt: Attempt) -> Checkpoint | None:
    """Return the checkpoint, durable, if an earlier try has made it though it could not tell."""
    place = attempt.job.place
    found = manifests.read(place, attempt.step)
    if found is None or found.attempt != attempt.id:
        return None
    durable.sync_dir(place.directory)
    discard(attempt)  # what it replaced
    return found


def discard(attempt: Attempt) -> None:
    """Delete what the attempt wrote; what cannot be deleted is logged, and left."""
    remove(directory_of(attempt), attempt.job.place)


def clear(attempt: Attempt) -> None:
    """Delete what the attempt wrote; raises if its directory is still there."""
    _move_away(directory_of(attempt), attempt.job.place)


def remove(directory: Path, place: Place) -> None:
    """Delete what is left of an attempt; what cannot be deleted is logged, and left."""
    try:
        _move_away(directory, place)
    except (OSError, errors.CkptdError) as error:
        logger.warning("cannot move %s away: %s", directory, error)


def _move_away(directory: Path, place: Place) -> None:
    """Delete the directory; first by name, so that no late commit finds it."""
    if not directory.exists():
        return
    # a name of its own: a crash may have left what was moved away before
    gone = directory.with_name(f"{directory.name}.{secrets.token_hex(4)}{removal.GONE}")
    try:
        durable.publish(directory, gone)
    except (FileNotFoundError, NotADirectoryError):
        return
    _delete(gone, place)


def _delete(gone: Path, place: Place) -> None:
    """Delete what has lost its name, but for a step that another daemon had just moved in there."""
    replaced = gone / _REPLACED
    if (replaced / MANIFEST).exists() and not _put_back_if_missing(replaced, place):
        return
    removal.delete(gone)


def put_back(place: Place, in_hand: Collection[str]) -> None:
    """Put back steps that a crash caught between their old and their new content.

    Those that attempts *in_hand* are replacing now are left to them.
    """
    for path in _left(place):
        if path.name.endswith(_REPLACED) and path.name.removesuffix(_REPLACED) not in in_hand:
            _put_back(path, place)
        elif path.name not in in_hand and (path / _REPLACED / MANIFEST).exists():
            _put_back_if_missing(path / _REPLACED, place)


def repair(place: Place, owner_name: str, in_hand: Collection[str], earlier: Sequence[str]) -> None:
    """Do as `put_back`, and delete what is gone, and what *earlier* lives of the run have left.

    Why attempts were given up, of the last of them, some daemon may still want to know. Of attempts
    of a single daemon only those of *owner_name* go: the memory that they were to be made from was
    lost, by a power cut say. Those of other daemons may live; see also `elsewhere`.
    """
    put_back(place, in_hand)
    for path in _left(place):
        attempt_id = path.name.partition(".")[0]  # also of what another daemon is about to name so
        if path.name.endswith(removal.GONE):
            _delete(path, place)
        elif attempt_id in in_hand:
            continue
        elif path.name.endswith(_NOTE):
            if members.is_attempt_of_any(earlier[:-1], attempt_id):
                path.unlink(missing_ok=True)
        elif owner.is_of(owner_name, path.name):
            remove(path, place)


def _left(place: Place) -> list[Path]:
    try:
        return list(place.attempts.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _put_back_if_missing(path: Path, place: Place) -> bool:
    """Put the old content back if there is neither old nor new; several nodes may be at it.

    False if it could not be.
    """
    try:
        old = manifests.decode((path / MANIFEST).read_bytes(), place)
        if not place.step(old.step).exists():
            durable.publish(path, place.step(old.step))
            logger.warning("step %s of %s was put back", old.step, place)
    except (OSError, ValueError, errors.CkptdError) as error:
        logger.warning("cannot put %s back: %s", path, error)
        return False
    return True


def _put_back(path: Path, place: Place) -> None:
    attempt_id = path.name.removesuffix(_REPLACED)
    if any(one.attempt == attempt_id for one in manifests.of_run(place)):
        remove(path, place)  # the new one is there, whatever can be read of the old one
        return
    try:
        old = manifests.decode((path / MANIFEST).read_bytes(), place)
        if place.step(old.step).exists():
            remove(path, place)
        else:
            durable.publish(path, place.step(old.step))
            logger.warning("step %s of %s was put back", old.step, place)
    except (OSError, ValueError, errors.CkptdError) as error:
        logger.warning("cannot put %s back: %s", path, error)
