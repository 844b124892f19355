"""The general path's way from names to addresses, within a time of ours."""

from __future__ import annotations

import socket

import aiohttp
import anyio
from aiohttp.abc import ResolveResult


class Resolver(aiohttp.ThreadedResolver):
    """Asks the system, and waits for it no longer than it is told to."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__()
        self._timeout_s = timeout_s

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of *host*; raises `OSError`."""
        try:
            with anyio.fail_after(self._timeout_s):
                return await super().resolve(host, port, family)
        except TimeoutError:
            text = f"{host} was not resolved within {self._timeout_s:g} s"
            raise OSError(0, text) from None
