"""Hands file descriptors to clients, each once, against a token.

One connection, one request: the client sends its token and a newline; the answer is one line
of JSON, `{}` with the descriptor beside it, or the error's class and sentence. A client that has
`questions` instead says so in that line, and stays.
"""

from __future__ import annotations

import array
import json
import logging
import os
import secrets
import socket
from dataclasses import dataclass

import anyio

from ckptd_daemon.door.frontdoor import peer
from ckptd_daemon.door.questions import GREETING, Questions
from ckptd_daemon.sessions import Process
from ckptd_proto import errors

logger = logging.getLogger(__name__)

TOKEN_S = 60.0  # a client asks at once; one that died never does
REQUEST_S = 5.0
REQUEST_MAX_BYTES = 128
CONNECTIONS_MAX = 256


@dataclass(frozen=True, slots=True)
class _Offer:
    fd: int
    uid: int
    until: float


class Descriptors:
    """What is waiting to be collected, by token."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._offers: dict[str, _Offer] = {}  # each owns its descriptor
        self._limiter = anyio.CapacityLimiter(CONNECTIONS_MAX)

    def __repr__(self) -> str:
        return f"<Descriptors [{len(self._offers)} waiting]>"

    def offer(self, fd: int, uid: int) -> str:
        """Return a token by which a process of *uid* gets a copy of *fd*, once, soon."""
        self._drop_expired()
        token = secrets.token_urlsafe(24)
        self._offers[token] = _Offer(os.dup(fd), uid, anyio.current_time() + TOKEN_S)
        return token

    async def serve(self, questions: Questions) -> None:
        """Answer until cancelled; what was not collected by then is dropped."""
        try:
            async with anyio.create_task_group() as tasks:
                while True:
                    await self._limiter.acquire_on_behalf_of(ticket := object())
                    await anyio.wait_readable(self._listener)
                    try:
                        connection, _ = self._listener.accept()
                    except OSError as error:
                        self._limiter.release_on_behalf_of(ticket)
                        if not isinstance(error, BlockingIOError):
                            logger.error("cannot accept a connection: %s", error)
                            await anyio.sleep(0.1)
                        continue
                    connection.setblocking(False)
                    tasks.start_soon(self._receive, connection, ticket, questions)
        finally:
            for offer in self._offers.values():
                os.close(offer.fd)
            self._offers.clear()

    async def _receive(
        self, connection: socket.socket, ticket: object, questions: Questions
    ) -> None:
        with connection:
            process = None
            try:
                with anyio.move_on_after(REQUEST_S):
                    process = await self._answer(connection, questions)
            finally:
                self._limiter.release_on_behalf_of(ticket)
            if process is not None:
                await questions.serve(connection, process)

    async def _answer(self, connection: socket.socket, questions: Questions) -> Process | None:
        """Answer the one request; returns who has questions and may ask them."""
        request = await _line(connection)
        process = peer(connection)
        if request is None or process is None:
            return None
        await anyio.wait_writable(connection)
        if request.startswith(GREETING):
            if not questions.welcomes(request, process):
                return None
            _send(connection, {}, fd=None)
            return process
        try:
            offer = self._collect(request, process.uid)
        except errors.CkptdError as error:
            _send(connection, {"error": type(error).__name__, "message": str(error)}, fd=None)
            return None
        try:
            _send(connection, {}, fd=offer.fd)
        finally:
            os.close(offer.fd)
        return None

    def _collect(self, token: str, uid: int) -> _Offer:
        self._drop_expired()
        offer = self._offers.get(token)
        if offer is None or offer.uid != uid:  # one answer for both: no hint to guessers
            text = "no descriptor waits under this token: it was collected, or is too old"
            raise errors.PermissionDenied(text)
        return self._offers.pop(token)

    def _drop_expired(self) -> None:
        now = anyio.current_time()
        for token in [token for token, offer in self._offers.items() if offer.until <= now]:
            os.close(self._offers.pop(token).fd)


async def _line(connection: socket.socket) -> str | None:
    """Return what the client sent before the newline; None if it is no request."""
    received = b""
    while not received.endswith(b"\n"):
        await anyio.wait_readable(connection)
        try:
            part = connection.recv(REQUEST_MAX_BYTES)
        except ConnectionError:
            return None
        received += part
        if not part or len(received) > REQUEST_MAX_BYTES:
            return None
    return received[:-1].decode("ascii", "replace")


def _send(connection: socket.socket, answer: dict[str, str], *, fd: int | None) -> None:
    rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    try:
        connection.sendmsg([json.dumps(answer).encode() + b"\n"], rights)
    except OSError as error:
        logger.info("a client left before its descriptor came: %s", error)
