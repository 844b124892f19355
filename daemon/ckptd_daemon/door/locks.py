"""One daemon per socket and per state directory."""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptd_daemon.config import default_socket
from ckptd_proto import errors

_HOLDER_MAX_BYTES = 4096


@contextmanager
def held(lock: Path, of: str, socket: Path) -> Iterator[None]:
    """Hold *lock*, which protects *of*, in the block; raises `FailedPrecondition` if taken.

    Who finds it taken is told at which *socket* its holder can be stopped.

    The kernel drops it with the process, however that ends. The file stays: removing it would
    let two processes hold two files of one name.
    """
    fd = _opened(lock)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.FailedPrecondition(_taken(fd, of)) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, os.fsencode(f"{os.getpid()}\n{socket}\n"), 0)
        yield
    finally:
        os.close(fd)


def _taken(fd: int, of: str) -> str:
    """Say who holds the lock *fd*, and how to stop it."""
    holder, _, rest = os.fsdecode(os.pread(fd, _HOLDER_MAX_BYTES, 0)).partition("\n")
    socket = rest.partition("\n")[0]  # none, if a daemon of before wrote it
    by = f"pid {holder}" if holder else "another process"
    command = f"ckptd stop --socket {shlex.quote(socket)}"
    if socket in {"", str(default_socket())}:
        command = "ckptd stop"
    return f"a daemon ({by}) already serves {of}; stop it with `{command}`, or use another"


def _opened(lock: Path) -> int:
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        text = f"cannot open the lock {lock}: {error.strerror}; use a directory you may write to"
        raise errors.PermissionDenied(text) from error
