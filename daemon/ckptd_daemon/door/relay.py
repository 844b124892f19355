"""Copies bytes between two sockets, both ways.

By callbacks of the event loop, which stay registered: every call of every client passes here twice,
and a task that waits for each piece costs several times as much. Not by the loop's streams: ending
one while bytes arrive makes their callback set a result that nobody may set any more.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import anyio

_PIECE_BYTES = 64 << 10


async def relay(one: socket.socket, other: socket.socket) -> None:
    """Copy bytes both ways until either side closes; what is read is never more than a piece."""
    closed = anyio.Event()
    ways = (_Way(one, other, closed.set), _Way(other, one, closed.set))
    try:
        for way in ways:
            way.start()
        await closed.wait()
    finally:
        for way in ways:
            way.stop()


class _Way:
    """From one socket to the other; reads no further while the other takes nothing."""

    def __init__(
        self, source: socket.socket, sink: socket.socket, on_end: Callable[[], object]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._sink = sink
        self._on_end = on_end
        self._unsent = memoryview(b"")

    def start(self) -> None:
        self._loop.add_reader(self._source, self._read)

    def stop(self) -> None:
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)

    def _read(self) -> None:
        try:
            data = self._source.recv(_PIECE_BYTES)
        except BlockingIOError:
            return
        except OSError:  # closed in the middle, which is as good as the end
            data = b""
        if not data:
            self._end()
            return
        self._unsent = memoryview(data)
        self._send()
        if self._unsent:
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._sink, self._go_on)

    def _go_on(self) -> None:
        self._send()
        if not self._unsent:
            self._loop.remove_writer(self._sink)
            self._loop.add_reader(self._source, self._read)

    def _send(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self._sink.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._unsent = memoryview(b"")
            self._end()

    def _end(self) -> None:
        self.stop()
        self._on_end()
