"""A real daemon, in a process of its own, on a temporary socket and state directory."""

from __future__ import annotations

import hashlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from ckptd.client import Client

READY_S = 30.0


def arena_of(state_dir: Path) -> Path:
    """Where a daemon of *state_dir* stages saves, unless told otherwise."""
    key = hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:16]
    return Path(f"/dev/shm/ckptd-{os.geteuid()}-{key}")


@contextmanager
def short_directory() -> Iterator[Path]:
    """Give a directory whose path leaves room for a socket's name; what is staged goes with it."""
    with tempfile.TemporaryDirectory(prefix="ckptd-test-") as name:
        directory = Path(name)
        yield directory
        for state_dir in (directory / "state", *directory.glob("*/state")):
            shutil.rmtree(arena_of(state_dir), ignore_errors=True)


class Daemon:
    """`ckptd serve`, to be started, killed and started again."""

    def __init__(
        self, directory: Path, *flags: str, within: Sequence[str] = (), **settings: object
    ) -> None:
        """*settings* become `CKPTD_…` variables of the daemon, and of it alone.

        *within* is a command that runs another where the daemon is to live.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.socket = directory / "d.sock"
        self.state_dir = directory / "state"
        self.log = directory / "log"
        self.flags = flags
        self.within = within
        self.settings = {f"CKPTD_{key.upper()}": str(value) for key, value in settings.items()}
        self.process: subprocess.Popen[str] | None = None

    @property
    def env(self) -> dict[str, str]:
        """The environment in which clients use this daemon, and start no other."""
        return os.environ | {"CKPTD_SOCKET": str(self.socket), "CKPTD_AUTOSTART": "0"}

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> Self:
        """Start it; returns when it accepts calls."""
        assert self.process is None, "it runs already"
        flags = [f"--socket={self.socket}", f"--state-dir={self.state_dir}", *self.flags]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.within, sys.executable, "-m", "ckptd.cli", "serve", *flags],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.env | self.settings,
                text=True,
            )
        assert self._first_line() == f"ckptd ready unix:{self.socket}\n", self.log_text()
        return self

    def kill(self) -> None:
        """SIGKILL: it gets to do nothing more."""
        self._end(signal.SIGKILL)

    def wait_killed(self) -> None:
        """Wait until somebody else has killed it."""
        assert self.process is not None, "it does not run"
        assert self.process.wait(READY_S) == -signal.SIGKILL
        self.kill()

    def stop(self, timeout_s: float = 40.0) -> int:
        """SIGTERM; return its exit code."""
        return self._end(signal.SIGTERM, timeout_s)

    def log_text(self) -> str:
        """All it has written to stderr, over all its lives."""
        return self.log.read_text()

    def client(self) -> Client:
        """A client of this daemon in this process."""
        from ckptd.client import Client

        return Client(self.socket)

    def forget(self, uuid: str, *images: str) -> None:
        """Have it lend no more of a checkpoint what lies beside *images*: files are read then."""
        from ckptd.link.connection import Connection
        from ckptd.saving import memory

        for image in images or ("__0_0.distcp",):
            memory.quarantine(Connection.open(self.socket), uuid, image, "a test reads files")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process is not None:
            self.kill()

    def _end(self, number: signal.Signals, timeout_s: float = 40.0) -> int:
        assert self.process is not None, "it does not run"
        self.process.send_signal(number)
        code = self.process.wait(timeout_s)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        assert "Traceback" not in self.log_text(), self.log_text()
        return code

    def _first_line(self) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        until = time.monotonic() + READY_S
        readable, _, _ = select.select([self.process.stdout], [], [], until - time.monotonic())
        return self.process.stdout.readline() if readable else ""
