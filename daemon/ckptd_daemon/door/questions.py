"""A short way for what is asked most: a question and its answer on the sibling socket, no gRPC.

The client's first line is `find` and the life of the daemon that it means; `{}` takes it on. Then
each side sends frames: the length in four bytes, and a message of the contract, a `FetchRequest`
and its `FindReply`. An empty answer says nothing but that gRPC knows more.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Awaitable, Callable

import anyio

from ckptd_daemon.sessions import Process

logger = logging.getLogger(__name__)

GREETING = "find "
CONNECTIONS_MAX = 4096
QUESTION_MAX_BYTES = 64 << 10
_LENGTH = struct.Struct(">I")

Answer = Callable[[bytes, Process], Awaitable[bytes]]


class Questions:
    """Answers those who are known to this life of the daemon, one question each at a time."""

    def __init__(self, instance: str, allowed: frozenset[int], answer: Answer) -> None:
        self._instance = instance
        self._allowed = allowed
        self._answer = answer
        self._connections = 0

    def __repr__(self) -> str:
        return f"<Questions [{self._connections} connections]>"

    def welcomes(self, greeting: str, process: Process) -> bool:
        """Tell whether *process* may ask here; all others have gRPC, which says why they may not.

        One that cannot be watched is a session per gRPC connection, and holds nothing by this one.
        """
        is_meant = greeting == GREETING + self._instance
        is_watched = process.pid != 0
        has_room = self._connections < CONNECTIONS_MAX
        return is_meant and is_watched and has_room and process.uid in self._allowed

    async def serve(self, connection: socket.socket, process: Process) -> None:
        """Answer until the client leaves, or says what is no question."""
        self._connections += 1
        try:
            while (question := await _received(connection)) is not None:
                answer = await self._answer(question, process)
                await _send(connection, _LENGTH.pack(len(answer)) + answer)
        except OSError as error:
            logger.debug("a connection for questions broke: %s", error)
        finally:
            self._connections -= 1


async def _received(connection: socket.socket) -> bytes | None:
    """Return the next question; None if there is none, or more than one."""
    received = b""
    end = _LENGTH.size
    while len(received) < end:
        await anyio.wait_readable(connection)
        part = connection.recv(QUESTION_MAX_BYTES)
        received += part
        if len(received) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(received)[0]
        if not part or len(received) > end or end > QUESTION_MAX_BYTES:
            return None
    return received[_LENGTH.size :]


async def _send(connection: socket.socket, data: bytes) -> None:
    """Send all of it; a client that asks has room for its one answer, or is waited for."""
    while data := data[connection.send(data) :]:
        await anyio.wait_writable(connection)
