"""The sockets of the origin: a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from fakes.origin.faults import Fault
from fakes.origin.files import FIRST_BYTE, File
from fakes.origin.replies import Ending, Reply, Request, reply_to

PIECE_BYTES = 1 << 18
HEAD_MAX_BYTES = 1 << 16


class Origin:
    """Serves `put` files at `url` while the block lasts, from a thread of its own."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.port = 0
        self.requests: list[tuple[str, str | None]] = []
        """The name and the Range header of each."""
        self.asked_at: list[float] = []
        """When each came, by the monotonic clock."""
        self.headers: list[dict[str, str]] = []
        """Of each request."""
        self.ports: list[int] = []
        """Where each request came from."""
        self.sent_bytes = 0
        """With what is just being sent: nobody has got bytes that do not count yet."""
        self.connections = 0
        """Open now."""
        self.connections_max = 0
        """Open at once, at most."""
        self.held = threading.Event()
        """Set when a body waits for `release`."""
        self._files: dict[str, File] = {}
        self._redirects: dict[str, str] = {}
        self._signed: dict[str, tuple[str, int, int]] = {}
        self._uses: Counter[str] = Counter()
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._is_serving = threading.Event()
        self._stop: asyncio.Event
        self._gate: asyncio.Event
        self._tasks: asyncio.TaskGroup
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._hold_after_bytes: int | None = None

    def url(self, name: str) -> str:
        return f"http://{self.host}:{self.port}/{name}"

    def put(self, name: str, data: bytes, *, etag: str | None = '"v1"', **more: object) -> File:
        """Serve *data* as *name*; one with a query is for that query only."""
        return self.serve(name, File(data, etag, **more))

    def serve(self, name: str, file: File) -> File:
        self._files[name] = file
        return file

    def file(self, name: str) -> File:
        """What is served as *name* now."""
        return self._files[name]

    def redirect(self, name: str, url: str) -> None:
        self._redirects[name] = url

    def sign(self, name: str, target: str, *, uses: int, status: int = 403) -> None:
        """Redirect *name* to *target* with a signature, new each time.

        Each is good for so many requests, and answered with *status* after that.
        """
        self._signed[name] = target, uses, status

    def hold(self, after_bytes: int = 0) -> None:
        """Let every body stop once this origin has sent *after_bytes* more, until `release`."""
        self._loop.call_soon_threadsafe(self._gate.clear)
        self.held.clear()
        self._hold_after_bytes = self.sent_bytes + after_bytes

    def release(self) -> None:
        self._hold_after_bytes = None
        self._loop.call_soon_threadsafe(self._gate.set)

    def refuse(self) -> None:
        """Refuse new connections until `accept`; those that are open stay."""
        asyncio.run_coroutine_threadsafe(self._refuse(), self._loop).result(10)

    def accept(self) -> None:
        """Take connections at the same port again."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def has_sent_once(self, size_bytes: int) -> bool:
        """Whether it sent an object of *size_bytes* once: help at the end brings a part twice."""
        return size_bytes <= self.sent_bytes < size_bytes * 1.5

    def bodies(self, name: str) -> list[str | None]:
        """The Range headers of the requests for more than the first byte."""
        return [asked for path, asked in self.requests if path == name and asked != FIRST_BYTE]

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
        """Answer until told to stop; then no connection and no task is left."""
        self._loop = asyncio.get_running_loop()
        self._stop, self._gate = asyncio.Event(), asyncio.Event()
        self._gate.set()
        try:
            await self._converse_with_all()
        finally:
            for connection in self._open:  # of a task that was cancelled before it began
                connection.close()

    async def _converse_with_all(self) -> None:
        async with asyncio.TaskGroup() as self._tasks:
            await self._listen()
            self._is_serving.set()
            await self._stop.wait()
            if self._listener is not None:
                await self._refuse()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    async def _listen(self) -> None:
        listener = socket.create_server((self.host, self.port), backlog=128)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._listener = listener
        # no task waits for connections: one that is cancelled would forget what it just accepted
        self._loop.add_reader(listener, self._take_connection, listener)

    async def _refuse(self) -> None:
        assert self._listener is not None
        self._loop.remove_reader(self._listener)
        self._listener.close()
        self._listener = None

    def _take_connection(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # whoever knocked is gone
        connection.setblocking(False)
        self._open.add(connection)
        self._tasks.create_task(self._converse(connection))

    async def _converse(self, connection: socket.socket) -> None:
        """Answer one request after the other."""
        self.connections += 1
        self.connections_max = max(self.connections_max, self.connections)
        with connection:
            try:
                while (request := await self._heard(connection)) is not None:
                    self.ports.append(connection.getpeername()[1])
                    reply = self._decided(request)
                    await self._send(connection, reply)
                    if reply.ending is not Ending.KEEP:
                        return
            except ConnectionError:
                return  # the reader is gone
            finally:
                self.connections -= 1
                self._open.discard(connection)

    async def _heard(self, connection: socket.socket) -> Request | None:
        head = b""
        while b"\r\n\r\n" not in head and len(head) < HEAD_MAX_BYTES:
            if not (piece := await self._loop.sock_recv(connection, HEAD_MAX_BYTES)):
                return None
            head += piece
        return Request.parse(head)

    def _decided(self, request: Request) -> Reply:
        self.requests.append((request.name, request.asked))
        self.asked_at.append(time.monotonic())
        self.headers.append(request.headers)
        if request.name in self._redirects:
            return Reply(302, {"Location": self._redirects[request.name]})
        if request.name in self._signed:
            return self._newly_signed(request.name)
        if (status := self._worn_out(request)) is not None:
            return Reply(status)
        file = self._files.get(f"{request.name}?{request.query}") or self._files.get(request.name)
        if file is None:
            return Reply(404)
        fault = file.next_fault(request.asked)
        if fault is Fault.CHANGE:
            assert file.next_version is not None
            file, fault = file.next_version, None
            self._files[request.name] = file
        if fault is Fault.CHURN:
            file.etag = f'"{len(self.requests)}"'
        return reply_to(request, file, fault)

    def _newly_signed(self, name: str) -> Reply:
        target, _, _ = self._signed[name]
        self._uses[name] += 1
        signature = f"X-Amz-Signature={name}.{self._uses[name]}"
        return Reply(302, {"Location": f"/{target}?{signature}"})

    def _worn_out(self, request: Request) -> int | None:
        """The status for a signature that was good for fewer requests."""
        _, _, signature = request.query.partition("X-Amz-Signature=")
        _, uses, status = self._signed.get(signature.partition(".")[0], ("", 0, 0))
        self._uses[signature] += 1
        return status if status and self._uses[signature] > uses else None

    async def _send(self, connection: socket.socket, reply: Reply) -> None:
        await asyncio.sleep(reply.first_byte_s)
        if reply.status:
            await self._loop.sock_sendall(connection, reply.head())
        for piece in _pieces(reply):
            if self._hold_after_bytes is not None and self.sent_bytes >= self._hold_after_bytes:
                self.held.set()
                await self._gate.wait()
            framed = b"%x\r\n%b\r\n" % (len(piece), piece) if reply.is_chunked else piece
            self.sent_bytes += len(piece)
            await self._loop.sock_sendall(connection, framed)
            if pause_s := reply.pause_s or (reply.bytes_per_s and len(piece) / reply.bytes_per_s):
                await asyncio.sleep(pause_s)
        if reply.is_chunked:
            await self._loop.sock_sendall(connection, b"0\r\n\r\n")
        if reply.ending is Ending.STALL:
            await self._gone(connection)
        if reply.ending is Ending.RESET:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def _gone(self, connection: socket.socket) -> None:
        """Wait until the reader has left."""
        while await self._loop.sock_recv(connection, HEAD_MAX_BYTES):
            pass


def _pieces(reply: Reply) -> Iterator[memoryview]:
    length = 1 if reply.pause_s else PIECE_BYTES
    body = memoryview(reply.body)
    for at in range(0, len(body), length):
        yield body[at : at + length]
