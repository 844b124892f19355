"""TLS in front of an origin, whatever that does."""

from __future__ import annotations

import asyncio
import ssl
import threading
from types import TracebackType
from typing import Self

from fakes.certificates import Authority
from fakes.origin import Origin

PIECE_BYTES = 1 << 18


class TlsFront:
    """Passes bytes on between TLS connections of its own port and *origin*, and their ends too."""

    def __init__(self, origin: Origin, authority: Authority) -> None:
        self._origin = origin
        self._context = authority.server_context()
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._is_serving = threading.Event()
        self.port = 0

    def url(self, name: str) -> str:
        return f"https://127.0.0.1:{self.port}/{name}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._is_serving.wait(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(
            self._pass_on, "127.0.0.1", 0, ssl=self._context, limit=PIECE_BYTES
        )
        self.port = server.sockets[0].getsockname()[1]
        self._is_serving.set()
        await self._stop.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks) if tasks else None

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner = await asyncio.open_connection("127.0.0.1", self._origin.port)
        except OSError:
            writer.transport.abort()
            return
        pumps = [
            asyncio.ensure_future(_pump(reader, inner[1])),
            asyncio.ensure_future(_pump(inner[0], writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if pumps[1].done():  # what is on its way gets there
                writer.close()
                await writer.wait_closed()
        except (ConnectionError, ssl.SSLError):
            return
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            inner[1].transport.abort()
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on until the end; a connection that broke ends like one that was closed."""
    try:
        while piece := await reader.read(PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
    except (ConnectionError, ssl.SSLError):
        return
