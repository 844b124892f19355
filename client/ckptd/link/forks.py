"""Keeps forked children, such as DataLoader workers, out of their parent's connections.

gRPC does not survive a fork: its threads are gone and its locks may be held. Here the child
gives up its copies of the connections at once, so that the daemon learns of the parent's
death from the parent alone, and never touches gRPC's objects again, not even to free them.
"""

from __future__ import annotations

import ctypes
import os
import socket
import stat
from typing import Protocol

from ckptd_proto import errors

# gRPC's own fork handlers wait for threads that are busy, and print when they cannot
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


class Connected(Protocol):
    """What holds connections that a child must not use."""

    @property
    def peer_names(self) -> set[str]:
        """The names under which the daemon listens, as our sockets know them."""

    def untouchables(self) -> list[object]:
        """Return the objects that must never be freed in a child."""


_connected: list[Connected] = []  # every connection this process ever made
_forked = False  # whether those are the parent's


def register(connection: Connected) -> None:
    """Have *connection* given up in children forked from now on."""
    if not _connected:
        os.register_at_fork(after_in_child=_give_up)
    _connected.append(connection)


def check_usable() -> None:
    """Raise `FailedPrecondition` in a child whose parent was connected when it forked."""
    if _forked:
        text = (
            "this process was forked from one that uses ckptd, which gRPC does not survive; "
            "start it with multiprocessing's `spawn` instead"
        )
        raise errors.FailedPrecondition(text)


def _give_up() -> None:
    global _forked
    _forked = True
    names = {name for connection in _connected for name in connection.peer_names}
    for connection in _connected:
        for thing in connection.untouchables():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208  no objects made in a child
            if _is_connected_to(int(entry), names):
                os.dup2(null, int(entry), inheritable=False)
    finally:
        os.close(null)


def _is_connected_to(fd: int, names: set[str]) -> bool:
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return False
        sock = socket.socket(fileno=fd)
    except OSError:
        return False
    try:
        return sock.family == socket.AF_UNIX and sock.getpeername() in names
    except OSError:  # not connected
        return False
    finally:
        sock.detach()
