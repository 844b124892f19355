"""Which of a host's addresses to connect to: one that let a connection down lately comes last."""

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Callable

import anyio
from anyio import CapacityLimiter, to_thread

from ckptd_daemon.sources.addresses import Info, is_nowhere, resolve
from ckptd_daemon.sources.source import TransientError

BLAMED_S = 60.0
BLAMED_MAX = 4096


class Edges:
    """The addresses that were blamed; of the event loop."""

    def __init__(
        self, resolving: CapacityLimiter, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._resolving = resolving
        self._clock = clock
        self._blamed: dict[str, float] = {}  # when; the longest ago first

    def __repr__(self) -> str:
        return f"<Edges [{len(self._blamed)} blamed]>"

    async def of(self, host: str, port: int, timeout_s: float) -> list[Info]:
        """Return the addresses of *host*, the best first.

        Raises `TransientError` if its name is not resolved within *timeout_s*.
        """
        try:
            return self.ordered(resolve(host, port, is_literal=True))
        except socket.gaierror:  # a name
            pass
        work = functools.partial(resolve, host, port)
        try:
            with anyio.fail_after(timeout_s):
                found = await to_thread.run_sync(
                    work, limiter=self._resolving, abandon_on_cancel=True
                )
        except TimeoutError:
            text = f"cannot connect: {host} was not resolved within {timeout_s:g} s"
            raise TransientError(text) from None
        except OSError as error:
            why = error.strerror or type(error).__name__
            text = f"cannot connect: {why}"
            raise TransientError(text, is_nowhere=is_nowhere(error)) from error
        return self.ordered(found)

    def ordered(self, found: list[Info]) -> list[Info]:
        """Return *found*, those behind that were blamed lately, the last one blamed at the end."""
        recent = self._clock() - BLAMED_S
        blamed = {a: at for a, at in self._blamed.items() if at > recent}
        return sorted(found, key=lambda info: blamed.get(info[4][0], 0.0))

    def blame(self, address: str) -> None:
        """Note that a connection to *address* came to nothing, or fell silent."""
        self._blamed.pop(address, None)
        self._blamed[address] = self._clock()
        if len(self._blamed) > BLAMED_MAX:
            del self._blamed[next(iter(self._blamed))]
