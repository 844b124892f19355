"""The short way past gRPC helps where it can, and is in nobody's way where it cannot."""

from __future__ import annotations

import os
import signal
import socket
import struct
from pathlib import Path

import pytest

from ckptd import errors, fetching
from ckptd.client import Client
from ckptd_proto.v1 import blobs_pb2
from fakes.daemon import Daemon
from fakes.origin import Origin

FRAME = struct.Struct(">I")


def asked(client: Client, ref: str) -> blobs_pb2.FindReply | None:
    questions = client.connection._link.stubs.questions
    return questions.find(blobs_pb2.FetchRequest(ref=ref))


def connected(daemon: Daemon, instance: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.connect(f"{daemon.socket}.fds")
    sock.sendall(f"find {instance}\n".encode())
    return sock


def is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_without_the_sibling_socket_grpc_does_it_all(daemon: Daemon, origin: Origin) -> None:
    Path(f"{daemon.socket}.fds").unlink()
    origin.put("model", b"data")
    client = daemon.client()
    for _ in range(2):
        assert client.fetch(origin.url("model")).read_bytes() == b"data"
    assert asked(client, origin.url("model")) is None


def test_the_next_life_of_the_daemon_is_asked_anew(daemon: Daemon, origin: Origin) -> None:
    origin.put("model", b"data")
    client = daemon.client()
    client.fetch(origin.url("model"))
    assert asked(client, origin.url("model")) is not None
    daemon.kill()
    daemon.start()
    assert asked(client, origin.url("model")) is None
    assert client.fetch(origin.url("model")).read_bytes() == b"data"
    assert asked(client, origin.url("model")) is not None


def test_a_daemon_that_hangs_costs_no_more_than_the_timeout(
    daemon: Daemon, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "RELEASE_S", 0.1)
    origin.put("model", b"data")
    client = daemon.client()
    client.fetch(origin.url("model"))
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        with pytest.raises(errors.DeadlineExceeded):
            client.fetch(origin.url("model"), timeout=0.1)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert client.fetch(origin.url("model")).read_bytes() == b"data"


def test_another_life_of_the_daemon_is_not_answered_for(daemon: Daemon) -> None:
    with connected(daemon, "another") as sock:
        assert is_closed(sock)


@pytest.mark.parametrize(
    "words",
    [FRAME.pack(1 << 20), FRAME.pack(1) + b"\0\0", b"\xff" * 100],
    ids=["too long", "more than one", "nonsense"],
)
def test_what_is_no_question_ends_the_connection(daemon: Daemon, words: bytes) -> None:
    client = daemon.client()
    with connected(daemon, client.connection.daemon.instance) as sock:
        assert sock.recv(3) == b"{}\n"
        sock.sendall(words)
        assert is_closed(sock)
    assert asked(client, "http://localhost/nothing") is not None


@pytest.mark.parametrize(
    "request_",
    [
        b"\xff\xff",
        blobs_pb2.FetchRequest(ref="none/such").SerializeToString(),
        blobs_pb2.FetchRequest(ref="http://localhost/", keep_s=-1).SerializeToString(),
    ],
    ids=["no message", "a missing file", "nonsense"],
)
def test_what_goes_wrong_is_left_to_grpc(daemon: Daemon, request_: bytes) -> None:
    with connected(daemon, daemon.client().connection.daemon.instance) as sock:
        assert sock.recv(3) == b"{}\n"
        for _ in range(2):
            sock.sendall(FRAME.pack(len(request_)) + request_)
            assert sock.recv(100) == FRAME.pack(0)
