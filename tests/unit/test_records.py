"""A TLS connection of the byte path: long reads come whole, and tell what they have so far."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from ssl import SSLSocket

import pytest

from ckptd_daemon.sources.tls import BUFFER_BYTES, RecordSocket, context
from fakes.certificates import Authority
from fakes.waiting import eventually

LONG_BYTES = 3 * BUFFER_BYTES + 1
SHORT_S = 0.05


class Ends:
    """Ours, the file that `http.client` reads it by, and the other's."""

    def __init__(self, ours: RecordSocket, theirs: SSLSocket) -> None:
        self.ours = ours
        self.theirs = theirs
        self.file: io.BufferedReader = ours.makefile("rb")

    def read(self, size_bytes: int) -> bytes:
        buffer = bytearray(size_bytes)
        return bytes(buffer[: self.file.readinto(buffer)])


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    authority = Authority(tmp_path / "authority")
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        connected = socket.create_connection(server.getsockname(), timeout=20)
        theirs, _ = server.accept()
        accepting = pool.submit(authority.server_context().wrap_socket, theirs, server_side=True)
        ours = context(authority.file).wrap_socket(connected, server_hostname="localhost")
        assert isinstance(ours, RecordSocket)
        found = Ends(ours, stack.enter_context(accepting.result(20)))
        stack.enter_context(ours)
        stack.enter_context(found.file)
        yield found


def test_a_long_read_waits_for_all_of_it_and_tells_what_has_come(ends: Ends) -> None:
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(ends.read, LONG_BYTES)
        ends.theirs.sendall(b"one")
        eventually(lambda: ends.ours.came_bytes == 3)
        ends.theirs.sendall(b"two")
        eventually(lambda: ends.ours.came_bytes == 6)
        ends.theirs.sendall(bytes(LONG_BYTES))
        assert reading.result(20) == b"onetwo" + bytes(LONG_BYTES - 6)


def test_a_head_is_read_as_soon_as_it_is_there(ends: Ends) -> None:
    ends.theirs.sendall(b"HTTP/1.1\r\n")
    assert ends.file.readline() == b"HTTP/1.1\r\n"
    assert ends.ours.came_bytes == 0


@pytest.mark.parametrize("is_polite", [True, False])
def test_a_read_ends_where_the_other_does(is_polite: bool, ends: Ends) -> None:
    ends.theirs.sendall(b"the last")
    if is_polite:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(ends.theirs.unwrap)
            assert ends.read(LONG_BYTES) == b"the last"
            ends.ours.unwrap()
    else:
        ends.theirs.close()
        assert ends.read(LONG_BYTES) == b"the last"
        assert ends.read(LONG_BYTES) == b""


def test_what_came_before_a_silence_is_told(ends: Ends) -> None:
    ends.ours.settimeout(SHORT_S)
    ends.theirs.sendall(b"so far")
    with pytest.raises(TimeoutError):
        ends.read(LONG_BYTES)
    assert ends.ours.came_bytes == len(b"so far")


def test_another_thread_can_end_a_read(ends: Ends) -> None:
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(ends.read, LONG_BYTES)
        ends.theirs.sendall(b"so far")
        eventually(lambda: ends.ours.came_bytes == len(b"so far"))
        socket.socket.shutdown(ends.ours, socket.SHUT_RDWR)
        assert reading.result(20) == b"so far"
