"""Starts a private daemon: one, however many processes of the node ask at once."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptd import environment
from ckptd.link import discovery
from ckptd_proto import errors

START_S = 60.0  # a cold import from a slow disk takes long
ENDING_S = 2.0  # between a daemon's last call and the end of its process
_POLL_S = 0.02
_TAIL_LINES = 10

_KEPT = frozenset(
    {
        "HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "PYTHONHOME",
        "PYTHONPATH", "SSL_CERT_DIR", "SSL_CERT_FILE", "TMPDIR", "TZ", "USER",
        "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    }
)  # fmt: skip
_KEPT_PREFIXES = ("CKPTD_", "LC_", "XDG_")
_OURS = frozenset({"CKPTD_OFFLINE"})  # about this process, and the daemon serves others, too


def is_allowed() -> bool:
    """Say whether the user lets us start daemons."""
    return environment.flag("CKPTD_AUTOSTART", default=True)


def ensure_running(socket: Path) -> bool:
    """Return when a daemon listens at *socket*; say whether it was started by us.

    Raises what kept it from starting, in the daemon's own words.
    """
    deadline = time.monotonic() + START_S
    discovery.make_directory(socket.parent)
    with _turn(socket.with_name(socket.name + ".start"), deadline):
        patience = time.monotonic() + ENDING_S
        while not _listens(socket):
            failure = _start(socket, deadline)
            if failure is None:
                return True
            # a daemon that is just ending may still hold its locks
            if not isinstance(failure, errors.FailedPrecondition) or time.monotonic() > patience:
                raise failure
            time.sleep(_POLL_S)
    return False


def _listens(socket: Path) -> bool:
    try:
        discovery.knock(socket)
    except errors.Unavailable:
        return False
    return True


@contextmanager
def _turn(lock: Path, deadline: float) -> Iterator[None]:
    """Wait until we alone may start a daemon here."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    text = f"another process has been starting a daemon for {START_S:.0f} s"
                    raise errors.Unavailable(f"{text}; look for it by `fuser {lock}`") from None
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(fd)


def _start(socket: Path, deadline: float) -> errors.CkptdError | None:
    """Start a daemon; return what it said if it did not come up."""
    command = [sys.executable, "-m", "ckptd_daemon", "--private", "--detach", "--socket"]
    reading, writing = os.pipe()
    try:
        try:
            with subprocess.Popen(
                [*command, str(socket)],
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                env=_environment(),
                cwd="/",
                start_new_session=True,
            ):
                pass  # the daemon detaches from the process that we wait for here
        finally:
            os.close(writing)
        said = _read_until_ready(reading, deadline)
    finally:
        os.close(reading)
    return None if said is None else _failure(socket, said)


def _environment() -> dict[str, str]:
    """What a daemon that outlives us should know of our environment."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or (name.startswith(_KEPT_PREFIXES) and name not in _OURS)
    }


def _read_until_ready(fd: int, deadline: float) -> str | None:
    """Return None once the daemon is ready, else all it said until it ended."""
    said = b""
    while True:
        readable, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            return f"{said.decode(errors='replace')}\nckptd: not ready within {START_S:.0f} s"
        part = os.read(fd, 1 << 16)
        said += part
        if b"ckptd ready " in said:
            return None
        if not part:
            return said.decode(errors="replace")


def _failure(socket: Path, said: str) -> errors.CkptdError:
    lines = said.strip().splitlines()[-_TAIL_LINES:]
    last = lines[-1] if lines else ""
    name, mark, sentence = last.removeprefix("ckptd: ").partition(": ")
    if last.startswith("ckptd: ") and mark and name in errors.BY_NAME:
        return errors.rebuilt(name, sentence)
    text = f"the daemon for {socket} did not start; run `ckptd serve` to see why"
    return errors.Unavailable(f"{text}; its last words: {' | '.join(lines) or 'none'}")
