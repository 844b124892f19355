"""An HTTP origin that lies, breaks off and waits exactly as told, and counts what it sends."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Self

from aiohttp import web

PIECE_BYTES = 1 << 18
OLD = "Sun, 06 Nov 1994 08:49:37 GMT"


class Fault(StrEnum):
    NONE = "answers as it should"
    NO_RANGES = "answers 200 with everything"
    NO_LENGTH = "answers 200, chunked"
    OTHER_RANGE = "sends another range, and says so"
    OTHER_TOTAL = "says another total length"
    LABELLED_200 = "answers 200 with the range as its whole body"
    CHANGE = "has another version from now on"
    CHURN = "has another version at every request"
    TRUNCATE = "closes the connection half way"
    RESET = "resets the connection half way"
    STALL = "stops half way and keeps the connection"
    THROTTLE = "answers 429 with Retry-After: 0"
    UNAVAILABLE = "answers 503"
    GZIP = "encodes although identity was asked"
    FORBID = "answers 403"
    LOSE = "answers 404"


@dataclass
class File:
    data: bytes
    etag: str | None
    last_modified: str | None = OLD
    next_version: File | None = None
    faults: list[Fault] = field(default_factory=list)
    """Taken one by one by requests for more than the first byte, before what lasts."""
    lasting: Fault | None = None
    """Applies to every other request."""


class Origin:
    """Serves `put` files at `url` while the block lasts, from a thread of its own."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.requests: list[tuple[str, str | None]] = []
        self.headers: list[dict[str, str]] = []
        self.sent_bytes = 0
        self.port = 0
        self._files: dict[str, File] = {}
        self._redirects: dict[str, str] = {}
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._is_serving = threading.Event()
        self._stop: asyncio.Event
        self._gate: asyncio.Event
        self.held = threading.Event()
        self._hold_after_bytes: int | None = None

    def url(self, name: str) -> str:
        return f"http://{self.host}:{self.port}/{name}"

    def put(self, name: str, data: bytes, *, etag: str | None = '"v1"', **more: object) -> File:
        """Serve *data* as *name*; one with a query is for that query only."""
        file = self._files[name] = File(data, etag, **more)
        return file

    def redirect(self, name: str, url: str) -> None:
        self._redirects[name] = url

    def hold(self, after_bytes: int = 0) -> None:
        """Let every body stop once this origin has sent *after_bytes* more, until `release`."""
        self._loop.call_soon_threadsafe(self._gate.clear)
        self.held.clear()
        self._hold_after_bytes = self.sent_bytes + after_bytes

    def release(self) -> None:
        self._hold_after_bytes = None
        self._loop.call_soon_threadsafe(self._gate.set)

    def bodies(self, name: str) -> list[str | None]:
        """The Range headers of the requests for more than the first byte."""
        return [asked for path, asked in self.requests if path == name and asked != "bytes=0-0"]

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
        self.release()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        """Answer until told to stop; then no connection and no task is left."""
        self._loop = asyncio.get_running_loop()
        self._stop, self._gate = asyncio.Event(), asyncio.Event()
        self._gate.set()
        app = web.Application()
        app.router.add_get("/{name:.*}", self._answer, allow_head=False)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self.host, 0)
            await site.start()
            self.port = site._server.sockets[0].getsockname()[1]
            self._is_serving.set()
            await self._stop.wait()
            await site.stop()
            # A connection whose reader is gone would keep what it could not send, and its task.
            assert runner.server is not None
            for connection in runner.server.connections:
                if connection.transport is not None:
                    connection.transport.abort()
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        asked = request.headers.get("Range")
        self.requests.append((name, asked))
        self.headers.append(dict(request.headers))
        if name in self._redirects:
            raise web.HTTPFound(self._redirects[name])
        chosen = f"{name}?{request.query_string}"
        file = self._files.get(chosen) or self._files.get(name)
        if file is None:
            raise web.HTTPNotFound
        fault = file.lasting
        if asked != "bytes=0-0" and file.faults:
            fault = file.faults.pop(0)
        if fault is Fault.CHANGE:
            assert file.next_version is not None
            file, fault = file.next_version, None
            self._files[name] = file
        if fault is Fault.CHURN:
            file.etag = f'"{len(self.requests)}"'
        match fault:
            case Fault.THROTTLE:
                raise web.HTTPTooManyRequests(headers={"Retry-After": "0"})
            case Fault.UNAVAILABLE:
                raise web.HTTPServiceUnavailable
            case Fault.FORBID:
                raise web.HTTPForbidden
            case Fault.LOSE:
                raise web.HTTPNotFound
        expected = request.headers.get("If-Match")
        if expected is not None and expected != file.etag:
            raise web.HTTPPreconditionFailed
        return await self._send(request, file, asked, fault)

    async def _send(
        self, request: web.Request, file: File, asked: str | None, fault: Fault | None
    ) -> web.StreamResponse:
        size = len(file.data)
        start, end = 0, size
        whole = {Fault.NO_RANGES, Fault.NO_LENGTH}
        if asked is not None and fault not in whole:
            found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
            assert found is not None
            start = int(found[1])
            end = min(int(found[2]) + 1, size) if found[2] else size
            if start >= size:
                raise web.HTTPRequestRangeNotSatisfiable(
                    headers={"Content-Range": f"bytes */{size}"}
                )
        is_part = asked is not None and fault not in whole
        if fault is Fault.OTHER_RANGE:
            start, end = max(0, start - 1), max(1, end - 1)
        response = web.StreamResponse(status=206 if is_part else 200)
        if fault is Fault.LABELLED_200:
            response.set_status(200)
        elif is_part:
            total = size + (fault is Fault.OTHER_TOTAL)
            response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{total}"
        if file.etag is not None:
            response.headers["ETag"] = file.etag
        if file.last_modified is not None:
            response.headers["Last-Modified"] = file.last_modified
        if fault is Fault.GZIP:
            response.headers["Content-Encoding"] = "gzip"
        if fault is Fault.NO_LENGTH:
            response.enable_chunked_encoding()
        else:
            response.content_length = end - start
        await response.prepare(request)
        async for piece in self._pieces(request, file.data, start, end, fault):
            try:
                await response.write(piece)
            except ConnectionError:
                return response
            with self._lock:
                self.sent_bytes += len(piece)
        return response

    async def _pieces(
        self, request: web.Request, data: bytes, start: int, end: int, fault: Fault | None
    ) -> AsyncIterator[bytes]:
        half = (start + end) // 2
        for at in range(start, end, PIECE_BYTES):
            if at >= half and fault in {Fault.TRUNCATE, Fault.RESET, Fault.STALL}:
                if fault is Fault.STALL:
                    await asyncio.Event().wait()
                transport = request.transport
                assert transport is not None
                transport.close() if fault is Fault.TRUNCATE else transport.abort()
                return
            if self._hold_after_bytes is not None and self.sent_bytes >= self._hold_after_bytes:
                self.held.set()
                await self._gate.wait()
            yield data[at : min(at + PIECE_BYTES, end)]
