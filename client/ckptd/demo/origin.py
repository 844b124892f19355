"""A small HTTP origin on this machine that serves one file by ranges and counts what it sends."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Origin(ThreadingHTTPServer):
    """Serves *path* to anyone on this machine; `sent_bytes` counts the bodies it has sent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = path.stat().st_size
        self.etag = f'"{path.stat().st_mtime_ns:x}-{self.size_bytes:x}"'
        self.sent_bytes = 0
        self._counting = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        """What a rank asks for."""
        return f"http://127.0.0.1:{self.server_port}/{self.path.name}"

    def count(self, sent_bytes: int) -> None:
        """Add *sent_bytes* to what was sent."""
        with self._counting:
            self.sent_bytes += sent_bytes

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a peer that went away: its next connection asks again."""


@contextmanager
def serving(path: Path) -> Iterator[Origin]:
    """Serve *path* while inside."""
    with Origin(path) as origin:
        thread = threading.Thread(target=origin.serve_forever, name="origin", daemon=True)
        thread.start()
        try:
            yield origin
        finally:
            origin.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Origin
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._head(0, self.server.size_bytes)

    def do_GET(self) -> None:
        start, end = self._range()
        if not 0 <= start < end:
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{self.server.size_bytes}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._head(start, end)
        self.wfile.flush()
        with self.server.path.open("rb") as file:
            while start < end:
                sent = os.sendfile(self.connection.fileno(), file.fileno(), start, end - start)
                self.server.count(sent)
                start += sent

    def _range(self) -> tuple[int, int]:
        """Return what of the file is asked for: one range, or all of it."""
        size = self.server.size_bytes
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if not asked or self.headers.get("If-Range", self.server.etag) != self.server.etag:
            return 0, size
        first, _, last = asked.partition("-")
        if not first:
            return max(0, size - int(last)), size
        return int(first), min(int(last) + 1, size) if last else size

    def _head(self, start: int, end: int) -> None:
        size = self.server.size_bytes
        is_part = "Range" in self.headers and self.command == "GET"
        self.send_response(HTTPStatus.PARTIAL_CONTENT if is_part else HTTPStatus.OK)
        if is_part:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", self.server.etag)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the table at the end tells."""
