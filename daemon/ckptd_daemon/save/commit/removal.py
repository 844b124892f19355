"""How a committed checkpoint goes: by name first, then its bytes, and never under a reader.

A reader holds a shared lock (`flock`) on the manifest for as long as it reads; it opens files relative to the
directory, so that what was moved away under it still is what it was.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ckptd_daemon.save.attempts import Checkpoint
from ckptd_daemon.save.commit import manifests
from ckptd_daemon.save.places import MANIFEST
from ckptd_daemon.store import durable
from ckptd_proto import errors

logger = logging.getLogger(__name__)

GONE: Final = ".gone"  # the end of the names of what may be deleted by anyone who finds it
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})


def remove(checkpoint: Checkpoint) -> None:
    """Delete the checkpoint: no longer listed when this returns, even after a power cut.

    Raises `NotFound` if it is not there any more, `FailedPrecondition` if somebody reads it.
    """
    place = checkpoint.place
    directory = place.step(checkpoint.step)
    with _unread(directory):
        found = manifests.read(place, checkpoint.step)
        if found is None or found.attempt != checkpoint.attempt:
            raise errors.NotFound(f"{directory} is not the checkpoint that was meant; look again")
        durable.make_dirs(place.attempts)
        gone = place.attempts / f"{directory.name}.{secrets.token_hex(4)}{GONE}"
        durable.publish(directory, gone)
        durable.sync_dir(place.directory)  # both names durable before any byte goes
    delete(gone)


def check_unread(directory: Path) -> None:
    """Raise `FailedPrecondition` if somebody reads the checkpoint in *directory* now."""
    with _unread(directory):
        return


def delete(gone: Path) -> bool:
    """Delete what has lost its name; False if somebody reads it still, or it cannot be: later."""
    try:
        with _unread(gone):
            shutil.rmtree(gone)
    except FileNotFoundError:
        return True
    except (OSError, errors.CkptdError) as error:
        logger.warning("cannot delete %s yet: %s", gone, error)
        return False
    return True


@contextmanager
def _unread(directory: Path) -> Iterator[None]:
    """Have nobody begin to read *directory* inside the block; what is no checkpoint nobody reads.

    Raises `FailedPrecondition` if somebody reads it.
    """
    try:
        # writable, because a network filesystem locks for writing only what is open for it
        fd = os.open(directory / MANIFEST, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        yield
        return
    try:
        _lock(fd, directory)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, directory: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        text = f"{directory} is being read; remove it when that has ended"
        raise errors.FailedPrecondition(text) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
