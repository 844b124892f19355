"""What a connection brought of a piece stays, however the piece ends."""

from __future__ import annotations

import mmap
import socket
import ssl
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace
from typing import cast

import pytest

from ckptd_daemon.config import Config
from ckptd_daemon.sources.source import Endpoint, Object, TransientError, Validator
from ckptd_daemon.store.journal import Header
from ckptd_daemon.store.partials import PAGE_BYTES, Partial
from ckptd_daemon.transfer.pace import Limits, Pacer
from ckptd_daemon.transfer.plan import Plan
from ckptd_daemon.transfer.stream import PIECE_FIRST_BYTES, Stream
from fakes.waiting import eventually

MIB = 1 << 20
CAME_BYTES = PIECE_FIRST_BYTES + 8 * PAGE_BYTES  # a piece, and some of the next
HEAD = (
    'HTTP/1.1 206 Partial Content\r\nETag: "v"\r\n'
    f"Content-Range: bytes 0-{MIB - 1}/{MIB}\r\nContent-Length: {MIB}\r\n\r\n"
)


def test_what_came_of_a_piece_before_a_reset_is_not_lost() -> None:
    header = Header("o", "t", "v", "n", MIB, MIB, is_resumable=True)
    claim = Plan(header, [0]).claim(0, MIB)
    partial = cast(Partial, SimpleNamespace(header=header, write=lambda *_: None))
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        url = f"http://127.0.0.1:{server.getsockname()[1]}/model"
        endpoint = Endpoint(url, {}, ssl.create_default_context())
        obj = Object(
            "o", "t", "v", "n", MIB, True, Validator('"v"', None, True), endpoint.url, False
        )
        stream = Stream(obj, endpoint, Pacer(Limits()).pace([], print), Config())
        stack.callback(stream.close)
        stream.connect()
        origin, _ = server.accept()
        fetching = pool.submit(
            stream.fetch, claim, partial, memoryview(mmap.mmap(-1, MIB)), lambda _: None
        )
        origin.recv(1 << 16)
        origin.sendall(HEAD.encode() + bytes(CAME_BYTES))
        eventually(lambda: stream.received_bytes >= CAME_BYTES)
        origin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        origin.close()
        with pytest.raises(TransientError):
            fetching.result(20)
    assert claim.at == CAME_BYTES
