"""Who else uses a file: the kernel knows, where it may be asked."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from pathlib import Path

_HELD = frozenset({errno.EAGAIN, errno.EACCES, errno.EBUSY})


def in_use(path: Path) -> bool:
    """Tell whether *path* has another name, or somebody has it open or mapped.

    A write lease is granted only if nobody else has the file open; it is given back at once.
    Where the filesystem has no leases, or the file is not ours, nobody is assumed to.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:  # gone, or being taken away
        return False
    try:
        return os.fstat(fd).st_nlink > 1 or _is_open(fd)
    finally:
        os.close(fd)


def _is_open(fd: int) -> bool:
    try:
        # whoever opens it just now waits a moment, and we are told: by a signal that does nothing
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        return error.errno in _HELD
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
