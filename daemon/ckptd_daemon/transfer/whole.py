"""A socket whose long reads come whole: the kernel waits for the rest, and not the interpreter.

Python's own time limit makes a socket one that never blocks: each read is then a wait and a call,
and brings what has come by then. Every one gives up the interpreter's lock and takes it again,
which costs more the more streams there are; of 48 it was half of all such turns.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import struct
import time
from contextlib import suppress
from math import ceil, inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

AHEAD_BYTES = io.DEFAULT_BUFFER_SIZE
"""What a buffered reader asks for when it needs a line; only more than that will surely come."""
PART_S = 0.25
"""A read that takes longer tells this often what has come of it."""
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

    _patience_s = inf
    came_bytes = 0
    """Of all long reads, to which a head and what came with it do not belong; grows while they come,
    every `PART_S` at least."""

    @classmethod
    def of(cls, connected: socket.socket) -> WholeSocket:
        """Take over a socket; the other object is closed from here on."""
        connected.setblocking(True)
        sock = cls(fileno=connected.detach())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(PART_S))
        return sock

    def settimeout(self, value: float | None) -> None:
        """Let a read wait for *value* seconds for the next bytes, and a write to be rid of some.

        A read then raises `TimeoutError`, a write `BlockingIOError`; None is for ever.
        """
        self._patience_s = inf if value is None else value
        limit = _timeval(0.0 if value is None else max(value, 1e-6))  # zero is for ever
        self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        """Receive as a socket does, but for long reads: these end early only at the end.

        Raises `TimeoutError` if nothing comes in time, also when something came before.
        """
        view = memoryview(buffer).cast("B")
        size_bytes = nbytes or view.nbytes
        if size_bytes <= AHEAD_BYTES:
            return self._part(view[:size_bytes], flags)
        got, flags = 0, flags | socket.MSG_WAITALL
        while got < size_bytes and (count := self._part(view[got:size_bytes], flags)):
            got += count
            self.came_bytes += count
        return got

    def _part(self, view: memoryview, flags: int) -> int:
        """Receive what comes next, be it less."""
        until = time.monotonic() + self._patience_s
        while True:
            try:
                return super().recv_into(view, 0, flags)
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None


def _timeval(seconds: float) -> bytes:
    return struct.pack("@ll", *divmod(ceil(seconds * 1e6), 1_000_000))
