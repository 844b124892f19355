"""Which daemon: where sockets are looked for, and which of them may be trusted."""

from __future__ import annotations

import os
import shlex
import socket
import stat
from pathlib import Path

from ckptd_proto import errors

DESCRIPTORS_SUFFIX = ".fds"
SOCKET_PATH_MAX_BYTES = 107  # sun_path of Linux, less the final NUL


def candidates(explicit: Path | None) -> list[Path]:
    """Return the sockets to try, in order: the one that was named and no other, if one was."""
    named = explicit or (Path(env) if (env := os.environ.get("CKPTD_SOCKET")) else None)
    if named is not None:
        length = len(os.fsencode(named.absolute()))
        if length > SOCKET_PATH_MAX_BYTES:
            text = (
                f"the socket path {named} is {length} bytes long, and the kernel allows "
                f"{SOCKET_PATH_MAX_BYTES}; use a shorter one"
            )
            raise errors.InvalidArgument(text)
        return [named.absolute()]
    found = [Path("/run/ckptd/ckptd.sock")]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        found.append(Path(runtime, "ckptd", "ckptd.sock"))
    found.append(private_directory() / "ckptd.sock")
    return found


def stop_command(path: Path) -> str:
    """Return the command that stops the daemon at *path*."""
    is_usual = path in candidates(None)
    return "ckptd stop" if is_usual else f"ckptd stop --socket {shlex.quote(str(path))}"


def private_directory() -> Path:
    """Where a user's private daemon lives."""
    return Path(f"/tmp/ckptd-{os.getuid()}")


def make_directory(directory: Path) -> None:
    """Create the directory of a socket; the private one must be ours and nobody else's."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        text = f"cannot create {directory} for a daemon's socket: {error.strerror}"
        raise errors.PermissionDenied(f"{text}; set CKPTD_SOCKET to a path you own") from error
    check_owner(directory)


def check_owner(directory: Path) -> None:
    """Raise `PermissionDenied` if someone else made our private directory."""
    if directory != private_directory():
        return
    try:
        found = directory.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        text = f"{directory} is not a directory of ours alone; have it removed, or set CKPTD_SOCKET"
        raise errors.PermissionDenied(text)


def knock(path: Path) -> str:
    """Return the name under which the daemon at *path* listens.

    Raises `Unavailable` if nobody does, `PermissionDenied` if we may not connect.
    """
    check_owner(path.parent)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(path))
        except PermissionError as error:
            text = f"user {os.getuid()} may not connect to {path}; start a daemon of your own"
            raise errors.PermissionDenied(f"{text} with `ckptd serve`") from error
        except OSError as error:
            text = f"no daemon listens at {path}; start one with `ckptd serve`"
            raise errors.Unavailable(text) from error
        return str(sock.getpeername())
