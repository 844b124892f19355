"""One daemon per socket and per state directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptd_proto import errors


@contextmanager
def held(lock: Path, of: str) -> Iterator[None]:
    """Hold *lock*, which protects *of*, in the block; raises `FailedPrecondition` if taken.

    The kernel drops it with the process, however that ends. The file stays: removing it would
    let two processes hold two files of one name.
    """
    fd = _opened(lock)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            by = f"pid {holder}" if holder else "another process"
            text = f"a daemon ({by}) already serves {of}; stop it with `ckptd stop`, or use another"
            raise errors.FailedPrecondition(text) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _opened(lock: Path) -> int:
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        text = f"cannot open the lock {lock}: {error.strerror}; use a directory you may write to"
        raise errors.PermissionDenied(text) from error
