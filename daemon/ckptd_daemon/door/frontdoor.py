"""Who may come in; relays those who may to gRPC's inner socket.

gRPC for Python shows a servicer neither the peer's credentials nor which connection a call
came by. So each connection is relayed from a client socket with a name of its own, and that
name is what `context.peer()` returns.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import anyio

from ckptd_daemon.door.relay import relay
from ckptd_daemon.sessions import Process, Sessions

logger = logging.getLogger(__name__)

SO_PEERPIDFD = 77  # Linux 6.5; Python has no name for it yet
_UCRED = struct.Struct("3i")
_OUT_OF_DESCRIPTORS_S = 0.1
CONNECTIONS_MAX = 4096
REFUSED_MAX = 32  # told in words; more at a time are just closed
REFUSED_S = 10.0


class Hall:
    """The 0700 directory between door and gRPC, addressed by a path that always fits."""

    def __init__(self, directory: Path, fd: int) -> None:
        self._directory = directory
        self._fd = fd
        self._count = 0

    @classmethod
    @contextmanager
    def open(cls, directory: Path) -> Iterator[Self]:
        """Empty *directory*, which only we use, and hold it open."""
        directory.mkdir(mode=0o700, exist_ok=True)
        directory.chmod(0o700)
        for leftover in directory.iterdir():
            leftover.unlink()
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield cls(directory, fd)
        finally:
            os.close(fd)

    def address(self, name: str) -> str:
        """Return the path of the socket called *name*."""
        return f"/proc/self/fd/{self._fd}/{name}"

    def connect(self, name: str) -> tuple[socket.socket, str]:
        """Connect to the socket called *name*; return ours and its unique name."""
        sock, own = self._named_socket()
        try:
            sock.connect(self.address(name))
            return sock, f"unix:{own}"
        except BaseException:
            sock.close()
            raise

    def _named_socket(self) -> tuple[socket.socket, str]:
        self._count += 1
        own = self.address(f"c-{self._count}")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.bind(own)
        Path(own).unlink()  # the name outlives the file
        return sock, own


def peer(connection: socket.socket) -> Process | None:
    """Return who connected; None if that process is gone already."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _gid = _UCRED.unpack(raw)
    if pid == 0:
        return Process(0, -connection.fileno(), uid)
    process = Process.of_pid(pid, uid)
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError:  # an older kernel, or it is gone and reaped
        return process if process.started else None
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        # readable: it has ended, and its number may be another's by now
        return None if poll.poll(0) else process
    finally:
        os.close(pidfd)


class FrontDoor:
    """Accepts connections, decides who may come in, relays."""

    def __init__(
        self, listener: socket.socket, hall: Hall, sessions: Sessions, allowed: frozenset[int]
    ) -> None:
        self._listener = listener
        self._hall = hall
        self._sessions = sessions
        self._allowed = allowed
        self._inside = 0  # connections being relayed
        self._refused = 0  # connections being told that they may not

    def __repr__(self) -> str:
        return f"<FrontDoor [{self._inside} inside, {self._refused} being refused]>"

    async def serve(self) -> None:
        """Let connections in until cancelled; that closes those that are open."""
        async with anyio.create_task_group() as tasks:
            while True:
                await anyio.wait_readable(self._listener)
                try:
                    connection, _ = self._listener.accept()
                except BlockingIOError:
                    continue
                except OSError as error:  # no descriptors left: the caller waits in the backlog
                    logger.error("cannot accept a connection: %s", error)
                    await anyio.sleep(_OUT_OF_DESCRIPTORS_S)
                    continue
                connection.setblocking(False)
                tasks.start_soon(self._receive, connection)

    async def _receive(self, connection: socket.socket) -> None:
        with connection:
            process = peer(connection)
            if process is None:
                return
            try:
                if process.uid in self._allowed:
                    await self._let_in(connection, process)
                else:
                    await self._refuse(connection, process)
            except OSError as error:  # no descriptors left, or the caller is gone
                logger.warning("a connection broke: %s", error, extra={"pid": process.pid})

    async def _let_in(self, connection: socket.socket, process: Process) -> None:
        if self._inside >= CONNECTIONS_MAX:
            logger.error("closed a connection: %d are open", self._inside)
            return
        inner, name = self._hall.connect("grpc")
        with inner:
            self._sessions.connect(name, process)
            self._inside += 1
            try:
                await relay(connection, inner)
            finally:
                self._inside -= 1
                self._sessions.disconnect(name)

    async def _refuse(self, connection: socket.socket, process: Process) -> None:
        """Let a server that can only say no answer, so that the caller reads why."""
        logger.warning("refused", extra={"uid": process.uid, "pid": process.pid})
        if self._refused >= REFUSED_MAX:
            return
        inner, _ = self._hall.connect("refusal")
        self._refused += 1
        try:
            with inner, anyio.move_on_after(REFUSED_S):
                await relay(connection, inner)
        finally:
            self._refused -= 1
