"""What a connection brought of a piece stays, however the piece ends."""

from __future__ import annotations

import io
import mmap
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from ckptd_daemon.config import Config
from ckptd_daemon.sources.source import Endpoint, Object, TransientError, Validator
from ckptd_daemon.sources.tls import context
from ckptd_daemon.store.journal import Header
from ckptd_daemon.store.partials import PAGE_BYTES, Partial
from ckptd_daemon.transfer import stream as streams
from ckptd_daemon.transfer.pace import PIECE_MAX_BYTES, Flow, Limits, Pacer
from ckptd_daemon.transfer.plan import PIECES, PIECES_OF_ALL, Claim, Plan
from ckptd_daemon.transfer.stream import PIECE_FIRST_BYTES, PIECE_STALL_BYTES, Stream
from fakes.certificates import Authority
from fakes.waiting import eventually

SIZE_BYTES = PIECE_MAX_BYTES * PIECES_OF_ALL
CLAIM_BYTES = PIECE_MAX_BYTES * PIECES
CAME_BYTES = PIECE_FIRST_BYTES + 8 * PAGE_BYTES  # a piece, and some of the next
HEAD = (
    'HTTP/1.1 206 Partial Content\r\nETag: "v"\r\n'
    f"Content-Range: bytes 0-{CLAIM_BYTES - 1}/{SIZE_BYTES}\r\n"
    f"Content-Length: {CLAIM_BYTES}\r\n\r\n"
)


class Connection:
    """A stream that fetches, and the origin's end of it, which has sent `CAME_BYTES` of a body."""

    def __init__(self, stack: ExitStack, authority: Authority | None) -> None:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        scheme = "http" if authority is None else "https"
        url = f"{scheme}://127.0.0.1:{server.getsockname()[1]}/model"
        endpoint = Endpoint(url, {}, context(authority and authority.file))
        obj = Object("o", "t", "v", "n", SIZE_BYTES, True, Validator('"v"', None, True), url, False)
        self.stream = Stream(obj, endpoint, Pacer(Limits()).pace([], print, Flow()), Config())
        stack.callback(self.stream.close)
        connecting = pool.submit(self.stream.connect)
        self.origin, _ = server.accept()
        if authority is not None:
            self.origin = authority.server_context().wrap_socket(self.origin, server_side=True)
        stack.enter_context(self.origin)
        connecting.result(20)
        header = Header("o", "t", "v", "n", SIZE_BYTES, SIZE_BYTES, is_resumable=True)
        self.plan = Plan(header, [0])
        self.claim: Claim = self.plan.claim(0, CLAIM_BYTES)
        partial = cast(Partial, SimpleNamespace(header=header, write=lambda *_: None))
        block = memoryview(mmap.mmap(-1, 2 * PIECE_MAX_BYTES))
        stack.callback(self.stream.interrupt)  # before the pool waits for it
        self.fetching: Future[None] = pool.submit(
            self.stream.fetch, self.claim, partial, block, lambda _: None
        )
        self.origin.recv(1 << 16)
        self.origin.sendall(HEAD.encode() + bytes(CAME_BYTES))

    def wait_for(self, n_bytes: int) -> None:
        eventually(lambda: self.stream.received_bytes >= n_bytes)

    def reset(self) -> None:
        self.origin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.origin.close()


@pytest.fixture(params=["plain", "tls"])
def connection(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Connection]:
    with ExitStack() as stack:
        is_plain = request.param == "plain"
        yield Connection(stack, None if is_plain else Authority(tmp_path / "authority"))


def test_what_came_of_a_piece_before_a_reset_is_not_lost(connection: Connection) -> None:
    connection.wait_for(CAME_BYTES)
    connection.reset()
    with pytest.raises(TransientError):
        connection.fetching.result(20)
    assert connection.claim.at == CAME_BYTES


def test_a_connection_that_others_take_over_counts_no_more(connection: Connection) -> None:
    stream, left_bytes = connection.stream, CLAIM_BYTES - CAME_BYTES
    connection.origin.sendall(bytes(left_bytes))
    connection.fetching.result(20)
    released = stream.release()
    assert released is not None
    assert stream.received_bytes == CLAIM_BYTES
    stream.take_up(released)
    assert stream.received_bytes == 0


@pytest.fixture
def big_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with the biggest pieces."""
    monkeypatch.setattr(streams, "PIECE_FIRST_BYTES", PIECE_MAX_BYTES)


@pytest.mark.usefixtures("big_pieces")
def test_of_a_big_piece_is_told_what_came_and_it_has_more_time(connection: Connection) -> None:
    connection.wait_for(CAME_BYTES - io.DEFAULT_BUFFER_SIZE)  # what came with the head is told last
    assert connection.claim.reached == connection.stream.received_bytes
    assert connection.plan.left_bytes == SIZE_BYTES - connection.stream.received_bytes
    stall_s, now = Config().stall_s, time.monotonic()
    times = PIECE_MAX_BYTES / PIECE_STALL_BYTES
    assert times > 2
    assert not connection.stream.is_silent(now + (times - 1) * stall_s)
    assert connection.stream.is_silent(now + times * stall_s + 1)
