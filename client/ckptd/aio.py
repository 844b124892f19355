"""`ckptd.Client` with await."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from ckptd import calls
from ckptd.client import Client as BlockingClient
from ckptd.values import DaemonStatus

T = TypeVar("T")

CALLS_MAX = 256  # each waits in a thread of its own


class Client:
    """A daemon, found or started at the first call; the methods of `ckptd.Client`."""

    def __init__(self, socket: Path | str | None = None) -> None:
        self._socket = socket
        self._limiter = anyio.CapacityLimiter(CALLS_MAX)

    def __repr__(self) -> str:
        return f"<ckptd.aio.Client of {self._socket or 'the usual daemon'}>"

    async def status(self) -> DaemonStatus:
        """Return what the daemon is doing now."""
        return await self._run(BlockingClient.status)

    async def stop(self) -> None:
        """Have the daemon finish what it may and end; returns once it has begun to."""
        await self._run(BlockingClient.stop)

    async def _run(self, method: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Run *method* in a thread; cancelling ends its calls, and with them the thread."""
        tracked = calls.Calls()

        def work() -> T:
            calls.current.set(tracked)  # the thread runs in a copy of our context
            return method(BlockingClient(self._socket), *arguments, **options)

        try:
            return await anyio.to_thread.run_sync(
                work, abandon_on_cancel=True, limiter=self._limiter
            )
        except anyio.get_cancelled_exc_class():
            tracked.cancel()
            raise
