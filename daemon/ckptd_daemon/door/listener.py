"""The public sockets: our own, bound under a lock, or systemd's."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckptd_daemon.door import locks
from ckptd_proto import errors

BACKLOG = 512  # all ranks of a big node connect in the same moment
DESCRIPTORS_SUFFIX = ".fds"
_FIRST_PASSED_FD = 3  # SD_LISTEN_FDS_START


@dataclass(frozen=True, slots=True)
class Listener:
    """Two listening sockets: one for calls, its sibling for descriptors."""

    path: Path
    calls: socket.socket
    descriptors: socket.socket


@contextmanager
def listening(path: Path, *, for_others: bool) -> Iterator[Listener]:
    """Listen at *path*, or where systemd says; *for_others*: any user may connect.

    Raises `FailedPrecondition` if another daemon is there.
    """
    mode = 0o666 if for_others else 0o600
    with ExitStack() as stack:
        passed = {_bound_to(sock): stack.enter_context(sock) for sock in _passed()}
        calls = next((p for p in passed if p.suffix != DESCRIPTORS_SUFFIX), None)
        if calls is None:
            _make_directory(path.parent)
            lock = locks.held(_sibling(path, ".lock"), f"the socket {path}", path)
            stack.enter_context(lock)
            passed[path] = stack.enter_context(_bound(path, mode))
            calls = path
        sibling = _sibling(calls, DESCRIPTORS_SUFFIX)
        if sibling not in passed:
            passed[sibling] = stack.enter_context(_bound(sibling, mode))
        yield Listener(calls, passed[calls], passed[sibling])


def _sibling(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


@contextmanager
def _bound(path: Path, mode: int) -> Iterator[socket.socket]:
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            _remove_stale(path, directory)
            umask = os.umask(0o177)  # nobody else may connect before the mode is what we want
            try:
                sock.bind(_address(path, directory))
            except OSError as error:
                text = f"cannot listen at {path}: {error.strerror}; use another --socket"
                raise errors.PermissionDenied(text) from error
            finally:
                os.umask(umask)
            path.chmod(mode)
            sock.listen(BACKLOG)
            try:
                yield sock
            finally:
                path.unlink(missing_ok=True)
    finally:
        os.close(directory)


def _address(path: Path, directory: int) -> str:
    """The path, or where the kernel's 107 bytes are too few, a short way to the same place."""
    fits = len(os.fsencode(path)) <= 107
    return str(path) if fits else f"/proc/self/fd/{directory}/{path.name}"


def _remove_stale(path: Path, directory: int) -> None:
    """Remove the socket of a daemon that was killed; one that answers is somebody's."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        text = f"{path} exists and is not a socket; remove it, or use another --socket"
        raise errors.FailedPrecondition(text)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(_address(path, directory))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # its backlog is full: it lives
            pass
    text = f"something already listens at {path}; stop it, or use another --socket"
    raise errors.FailedPrecondition(text)


def _make_directory(directory: Path) -> None:
    """Create the directory of the socket; the well-known one below /tmp must be ours alone."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        text = f"cannot create {directory} for the socket: {error.strerror}; use another --socket"
        raise errors.PermissionDenied(text) from error
    if directory == Path(f"/tmp/ckptd-{os.getuid()}"):
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            text = f"{directory} belongs to someone else; have it removed, or use another --socket"
            raise errors.PermissionDenied(text)
        directory.chmod(0o700)


def _passed() -> Iterator[socket.socket]:
    """The sockets that systemd hands over, once."""
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    os.environ.pop("LISTEN_FDNAMES", None)
    for fd in range(_FIRST_PASSED_FD, _FIRST_PASSED_FD + count):
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        yield sock


def _bound_to(sock: socket.socket) -> Path:
    if sock.family != socket.AF_UNIX:
        text = "systemd handed over a socket that is not a unix socket; use ListenStream=/path"
        raise errors.InvalidArgument(text)
    return Path(os.fsdecode(sock.getsockname()))
