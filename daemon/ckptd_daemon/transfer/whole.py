"""A socket whose long reads come whole: the kernel waits for the rest, and not the interpreter.

And one that takes much from the start. Python's own time limit makes a socket one that never blocks: each read is then a wait and a call,
and brings what has come by then. Every one gives up the interpreter's lock and takes it again,
which costs more the more streams there are; of 48 it was half of all such turns.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import struct
from contextlib import suppress
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

AHEAD_BYTES = io.DEFAULT_BUFFER_SIZE
"""What a buffered reader asks for when it needs a line; only more than that will surely come."""
WINDOW_BYTES = 2 << 20


def widen(sock: socket.socket) -> None:
    """Let so much be on its way to a TCP socket from the start; the kernel would get there slowly.

    By way of the least that is worth a wake-up, for which it makes room: a size that is set outright
    is a fraction of that on most machines, and stays so.
    """
    with suppress(OSError):  # of a kernel that knows no such thing
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, WINDOW_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


class WholeSocket(socket.socket):
    """A connected socket, with its limits of time kept by the kernel."""

    @classmethod
    def of(cls, connected: socket.socket) -> WholeSocket:
        """Take over a socket; the other object is closed from here on."""
        connected.setblocking(True)
        return cls(fileno=connected.detach())

    def settimeout(self, value: float | None) -> None:
        """Let a call stand still for *value* seconds at most, for ever if None.

        A read then raises `TimeoutError`, a write `BlockingIOError`.
        """
        micros = 0 if value is None else max(1, ceil(value * 1e6))  # and 0 is for ever
        limit = struct.pack("@ll", *divmod(micros, 1_000_000))
        self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        """Receive as a socket does, but for long reads: these end early only at the end.

        Raises `TimeoutError` if nothing came in time; what came before that is returned first.
        """
        size_bytes = nbytes or memoryview(buffer).nbytes
        if size_bytes > AHEAD_BYTES:
            flags |= socket.MSG_WAITALL
        try:
            return super().recv_into(buffer, nbytes, flags)
        except BlockingIOError as error:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from error
