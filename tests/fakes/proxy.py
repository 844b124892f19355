"""A small forward proxy: CONNECT, and requests in absolute form."""

from __future__ import annotations

import asyncio
import base64
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

MUTTER_S = 0.02


class Proxy:
    """Forwards while the block lasts; with *user* and *password*, for those who know them.

    One that *mutters* makes no tunnels: it says that instead, a byte now and then, without end.
    """

    def __init__(self, user: str = "", password: str = "", *, mutters: str | None = None) -> None:
        self.requests: list[str] = []
        """The first line of each that was let through."""
        self.port = 0
        userinfo = f"{user}:{password}".encode()
        self._mutters = mutters
        self._expected = f"Basic {base64.b64encode(userinfo).decode()}" if user else None
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._is_serving = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def url(self, userinfo: str = "") -> str:
        return f"http://{userinfo}{'@' * bool(userinfo)}127.0.0.1:{self.port}"

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

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._is_serving.set()
        await self._stop.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._forward(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # one side is gone
        finally:
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Forward one request; tells whether another may follow."""
        first, headers = _parsed(await reader.readuntil(b"\r\n\r\n"))
        method, target, version = first.split(" ")
        given = headers.pop("Proxy-Authorization", None)
        if given != self._expected:
            writer.write(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return True
        self.requests.append(first)
        if method == "CONNECT" and self._mutters is not None:
            await _mutter(self._mutters.encode(), writer)
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        there, here = await asyncio.open_connection(parts.hostname, parts.port or 80)
        try:
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
                await asyncio.gather(_pump(reader, here), _pump(there, writer))
                return False
            path = parts._replace(scheme="", netloc="").geturl() or "/"
            told = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
            here.write(f"{method} {path} {version}\r\n{told}\r\n".encode("latin-1"))
            head = await there.readuntil(b"\r\n\r\n")
            writer.write(head)
            left = int(_parsed(head)[1].get("Content-Length", "0"))
            while left and (piece := await there.read(min(left, 1 << 18))):
                writer.write(piece)
                await writer.drain()
                left -= len(piece)
            return left == 0
        finally:
            here.transport.abort()


async def _mutter(words: bytes, writer: asyncio.StreamWriter) -> None:
    while True:
        for byte in words:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(MUTTER_S)
        await asyncio.sleep(MUTTER_S)


def _parsed(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    return first, dict(line.split(": ", 1) for line in lines)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the end."""
    while piece := await reader.read(1 << 18):
        writer.write(piece)
        await writer.drain()
    writer.close()
