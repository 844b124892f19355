"""A socket of the byte path: long reads come whole, and no call stands still for ever."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ckptd_daemon.transfer.whole import AHEAD_BYTES, WINDOW_BYTES, WholeSocket, widen
from fakes.waiting import eventually

LONG_BYTES = AHEAD_BYTES + 1
SHORT_S = 0.05


@pytest.fixture
def ends() -> Iterator[tuple[WholeSocket, socket.socket]]:
    """Ours, and the other's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = WholeSocket.of(socket.create_connection(server.getsockname(), timeout=20))
        theirs, _ = server.accept()
    with ours, theirs:
        ours.settimeout(20)
        yield ours, theirs


def received(sock: socket.socket, size_bytes: int) -> bytes:
    buffer = bytearray(size_bytes)
    return bytes(buffer[: sock.recv_into(memoryview(buffer))])


def test_a_long_read_waits_for_all_of_it(ends: tuple[WholeSocket, socket.socket]) -> None:
    ours, theirs = ends
    sent = bytes(range(256)) * (LONG_BYTES // 256 + 1)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(received, ours, LONG_BYTES)
        for start in range(0, len(sent), 1000):
            theirs.sendall(sent[start : start + 1000])
        assert reading.result(20) == sent[:LONG_BYTES]


def test_a_short_read_takes_what_is_there(ends: tuple[WholeSocket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.sendall(b"HTTP/1.1")
    assert received(ours, AHEAD_BYTES) == b"HTTP/1.1"


def test_a_read_ends_where_the_other_does(ends: tuple[WholeSocket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.sendall(b"the last")
    theirs.close()
    assert received(ours, LONG_BYTES) == b"the last"
    assert received(ours, LONG_BYTES) == b""


@pytest.mark.parametrize("size_bytes", [1, LONG_BYTES])
def test_silence_has_its_time(size_bytes: int, ends: tuple[WholeSocket, socket.socket]) -> None:
    ours, _ = ends
    ours.settimeout(SHORT_S)
    with pytest.raises(TimeoutError):
        received(ours, size_bytes)


def test_what_came_before_the_silence_is_told(ends: tuple[WholeSocket, socket.socket]) -> None:
    ours, theirs = ends
    ours.settimeout(SHORT_S)
    theirs.sendall(b"so far")
    with pytest.raises(TimeoutError):
        received(ours, LONG_BYTES)
    assert ours.came_bytes == len(b"so far")


def test_what_comes_slowly_is_told_in_parts_and_is_no_silence(
    ends: tuple[WholeSocket, socket.socket],
) -> None:
    ours, theirs = ends
    ours.settimeout(20)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(received, ours, LONG_BYTES)
        theirs.sendall(b"one")
        eventually(lambda: ours.came_bytes == 3)
        theirs.sendall(b"two")
        eventually(lambda: ours.came_bytes == 6)
        theirs.sendall(bytes(LONG_BYTES))
        assert reading.result(20)[:6] == b"onetwo"
    assert ours.came_bytes == LONG_BYTES


def test_what_came_before_a_failure_is_told(ends: tuple[WholeSocket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.sendall(b"so far")
    ours.sendall(b"unread, so that the other end resets")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(received, ours, LONG_BYTES)
        eventually(lambda: ours.came_bytes == len(b"so far"))
        theirs.close()
        with pytest.raises(ConnectionResetError):
            reading.result(20)
    assert ours.came_bytes == len(b"so far")


def test_who_takes_nothing_holds_up_no_writer(
    ends: tuple[WholeSocket, socket.socket],
) -> None:
    ours, _ = ends
    ours.settimeout(SHORT_S)
    with pytest.raises(BlockingIOError):
        ours.sendall(bytes(64 << 20))


def test_a_write_may_be_given_time_without_end(ends: tuple[WholeSocket, socket.socket]) -> None:
    ours, _ = ends
    ours.settimeout(SHORT_S)
    assert any(ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16))
    ours.settimeout(None)
    assert not any(ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16))


@pytest.mark.parametrize("size_bytes", [1, LONG_BYTES])
def test_another_thread_can_end_a_read(
    size_bytes: int, ends: tuple[WholeSocket, socket.socket]
) -> None:
    ours, _ = ends
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(received, ours, size_bytes)
        ours.shutdown(socket.SHUT_RDWR)
        assert reading.result(20) == b""


def test_the_socket_it_was_made_of_is_closed(ends: tuple[WholeSocket, socket.socket]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        connected = socket.create_connection(server.getsockname(), timeout=20)
        with WholeSocket.of(connected) as ours:
            assert connected.fileno() == -1
            assert ours.getpeername() == server.getsockname()
            assert ours.getblocking()


def test_much_may_be_on_its_way_from_the_start(ends: tuple[WholeSocket, socket.socket]) -> None:
    ours, theirs = ends
    before = ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    widen(ours)
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= max(WINDOW_BYTES, before)
    theirs.sendall(b"!")
    assert received(ours, AHEAD_BYTES) == b"!"  # and little is waited for no longer
