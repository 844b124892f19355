"""Connections that have done their work, kept for a moment: the next small file needs none new."""

from __future__ import annotations

import http.client
from collections import deque
from dataclasses import dataclass

import anyio

from ckptd_daemon.sources.brakes import host_of
from ckptd_daemon.sources.source import Endpoint

IDLE_S = 2.0
IDLE_MAX = 64


@dataclass(eq=False, slots=True)
class _Idle:
    whom: tuple[object, ...]
    connection: http.client.HTTPConnection
    since: float


class Idle:
    """Connections nobody uses now; of the event loop. What was put in here is closed here."""

    def __init__(self) -> None:
        self._idle: deque[_Idle] = deque()  # the oldest first
        self._more = anyio.Event()

    def __repr__(self) -> str:
        return f"<Idle [{len(self._idle)} connections]>"

    def put(
        self, connection: http.client.HTTPConnection, endpoint: Endpoint, *, is_public: bool
    ) -> None:
        """Keep a connection whose last reply was read to its end."""
        whom = _whom(endpoint, is_public)
        self._idle.append(_Idle(whom, connection, anyio.current_time()))
        if len(self._idle) > IDLE_MAX:
            self._idle.popleft().connection.close()
        self._more.set()

    def take(self, endpoint: Endpoint, *, is_public: bool) -> http.client.HTTPConnection | None:
        """Return a connection to *endpoint*, made under the same rule; it may be dead by now."""
        whom = _whom(endpoint, is_public)
        found = next((one for one in reversed(self._idle) if one.whom == whom), None)
        if found is None:
            return None
        self._idle.remove(found)
        return found.connection

    async def keep(self) -> None:
        """Close each after a while; runs for ever, and closes all at its end."""
        try:
            while True:
                await self._more.wait()
                self._more = anyio.Event()
                while self._idle:
                    await anyio.sleep(max(0, self._idle[0].since + IDLE_S - anyio.current_time()))
                    self._close(before=anyio.current_time() - IDLE_S)
        finally:
            self._close(before=float("inf"))

    def _close(self, before: float) -> None:
        while self._idle and self._idle[0].since <= before:
            self._idle.popleft().connection.close()


def _whom(endpoint: Endpoint, is_public: bool) -> tuple[object, ...]:
    return host_of(endpoint.url), endpoint.proxy, endpoint.tls, is_public
