"""The daemon that is measured: of this installation, with a cache of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ckptd import errors
from ckptd.bench import processes

if TYPE_CHECKING:
    from ckptd.client import Client

READY_S = 60.0
STOP_S = 60.0
SEEN_S = 30.0
_POLL_S = 0.02
_TAIL_LINES = 5


class Node:
    """A running daemon."""

    def __init__(self, process: subprocess.Popen[str], socket: Path, ready_s: float) -> None:
        self.pid = process.pid
        self.socket = socket
        self.ready_s = ready_s
        """From the start of its process to its word that it is ready."""
        self.client: Client = _client(socket)
        """Of this process."""

    @property
    def environment(self) -> Mapping[str, str]:
        """In which clients find this daemon, and start no other."""
        return _environment() | {"CKPTD_SOCKET": str(self.socket), "CKPTD_AUTOSTART": "0"}

    def slots(self) -> list[Path]:
        """Return the files of its arena's slots, which it has open."""
        found: list[Path] = []
        for fd in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                if fd.readlink().suffix == ".slot":
                    found.append(fd)
        return found

    def await_bytes(self) -> None:
        """Wait until a fetch that is going on brings bytes."""
        deadline = time.monotonic() + SEEN_S
        while not any(flight.done_bytes for flight in self.client.status().flights):
            if time.monotonic() > deadline:
                raise errors.Internal("the daemon fetches nothing")
            time.sleep(_POLL_S)

    def forget(self) -> None:
        """Drop all blobs that nobody holds."""
        for blob in self.client.blobs():
            if not blob.leases:
                self.client.remove_blob(blob.key)

    def clear(self) -> None:
        """Drop all blobs, once the processes that held them are seen to have ended."""
        deadline = time.monotonic() + SEEN_S
        while any(blob.leases for blob in self.client.blobs()):
            if time.monotonic() > deadline:
                raise errors.Internal("the daemon holds blobs for processes that have ended")
            time.sleep(_POLL_S)
        self.forget()


def settings() -> Mapping[str, str]:
    """Return the settings of the daemon that the environment states, but for its places."""
    places = {"CKPTD_SOCKET", "CKPTD_STATE_DIR", "CKPTD_AUTOSTART"}
    return {k: v for k, v in os.environ.items() if k.startswith("CKPTD_") and k not in places}


@contextmanager
def running(
    state_dir: Path, ca_file: Path | None = None, settings: Mapping[str, str] | None = None
) -> Iterator[Node]:
    """Start a daemon that keeps its state in *state_dir*; it ends with the block.

    *settings* are put into its environment.
    """
    environment = {**_environment(), **(settings or {})}
    if ca_file is not None:
        environment["SSL_CERT_FILE"] = str(ca_file)
    with tempfile.TemporaryDirectory(prefix="ckptd-bench-") as short:  # a socket's path is short
        socket, log = Path(short, "d.sock"), Path(short, "log")
        command = [sys.executable, "-m", "ckptd_daemon", "--socket", str(socket)]
        began = time.perf_counter()
        with (
            log.open("wb") as said,
            subprocess.Popen(
                [*command, "--state-dir", str(state_dir)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                env=environment,
                text=True,
            ) as process,
        ):
            try:
                assert process.stdout is not None  # by PIPE
                is_there = processes.await_readable(process.stdout.fileno(), lambda: None, READY_S)
                if not is_there or not process.stdout.readline().startswith("ckptd ready"):
                    lines = log.read_text(errors="replace").strip().splitlines()[-_TAIL_LINES:]
                    text = f"the benchmark's daemon did not start: {' | '.join(lines)}"
                    raise errors.Unavailable(text)
                yield Node(process, socket, time.perf_counter() - began)
                process.terminate()
                process.wait(STOP_S)
            finally:
                process.kill()  # too late for one that has ended, right for any other


def _environment() -> dict[str, str]:
    places = {"CKPTD_SOCKET", "CKPTD_STATE_DIR"}
    return {name: value for name, value in os.environ.items() if name not in places}


def _client(socket: Path) -> Client:
    from ckptd.client import Client

    return Client(socket)
