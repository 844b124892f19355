"""Servers of another age."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ckptd import errors
from fakes.daemon import Daemon


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Run an old-fashioned HTTP/1.0 server; yields its port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class _Unframed(BaseHTTPRequestHandler):
    """Ends its reply by closing the connection, as a cut would."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"half of someth")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_reply_whose_end_nobody_can_tell_is_refused(daemon: Daemon) -> None:
    with (
        serving(_Unframed) as port,
        pytest.raises(errors.FailedPrecondition, match="neither the length nor the end"),
    ):
        daemon.client().fetch(f"http://127.0.0.1:{port}/model")
    assert daemon.client().blobs() == []
