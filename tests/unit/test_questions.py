"""Both ends of the short way past gRPC, each beside one that misbehaves."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckptd.link import calls
from ckptd.link.questions import QUESTION_MAX_BYTES, Questions
from ckptd_daemon.door import questions as door
from ckptd_daemon.sessions import Process
from ckptd_proto.v1 import blobs_pb2

REQUEST = blobs_pb2.FetchRequest(ref="http://origin/model")
REPLY = blobs_pb2.FindReply(blob=blobs_pb2.Blob(path="/cache/model"))
FRAME = struct.Struct(">I")


def framed(message: blobs_pb2.FindReply) -> bytes:
    data = message.SerializeToString()
    return FRAME.pack(len(data)) + data


@contextmanager
def answering(directory: Path, answer: Callable[[socket.socket], object]) -> Iterator[Questions]:
    """A client, and a daemon that welcomes it once, and then does *answer* for every question."""

    def serve() -> None:
        connection, _ = listener.accept()
        listener.close()
        with connection:
            while not connection.recv(100).endswith(b"\n"):
                pass
            connection.sendall(b"{}\n")
            while connection.recv(1 << 16):
                answer(connection)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"{directory}/s.fds")
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        questions = Questions(directory / "s")
        questions.instance = "life"
        try:
            yield questions
        finally:
            questions.close()
            thread.join(20)


def test_questions_go_by_one_connection(short_path: Path) -> None:
    with answering(short_path, lambda it: it.sendall(framed(REPLY))) as questions:
        for _ in range(3):
            assert questions.find(REQUEST) == REPLY


def test_an_answer_may_come_in_pieces(short_path: Path) -> None:
    def answer(connection: socket.socket) -> None:
        for byte in framed(REPLY):
            connection.sendall(bytes([byte]))

    with answering(short_path, answer) as questions:
        assert questions.find(REQUEST) == REPLY


@pytest.mark.parametrize(
    "answer",
    [
        lambda it: it.shutdown(socket.SHUT_WR),
        lambda it: (it.sendall(framed(REPLY)[:-1]), it.shutdown(socket.SHUT_WR)),
        lambda it: it.sendall(FRAME.pack(2) + b"\xff\xff"),
        lambda it: it.sendall(framed(REPLY) + b"\x78\x01"),  # a field more, to a reader
    ],
    ids=["none", "cut off", "no message", "more than one"],
)
def test_a_connection_on_which_the_answer_was_wrong_is_left(
    short_path: Path, answer: Callable[[socket.socket], object]
) -> None:
    with answering(short_path, answer) as questions:
        assert questions.find(REQUEST) is None
        assert questions.find(REQUEST) is None


def test_no_answer_in_time_is_none(short_path: Path) -> None:
    with answering(short_path, lambda _: None) as questions:
        assert questions.find(REQUEST, timeout_s=0.01) is None


def test_no_answer_to_an_interrupted_question_is_taken_for_one_to_the_next(
    short_path: Path,
) -> None:
    def answer(connection: socket.socket) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with answering(short_path, answer) as questions:
        with pytest.raises(KeyboardInterrupt):
            questions.find(REQUEST)
        assert questions.find(REQUEST) is None


def test_a_second_thread_does_not_wait_for_the_first(short_path: Path) -> None:
    seconds: list[object] = []

    def answer(connection: socket.socket) -> None:
        seconds.append(questions.find(REQUEST))
        connection.sendall(framed(REPLY))

    with answering(short_path, answer) as questions:
        assert questions.find(REQUEST) == REPLY
    assert seconds == [None]


def test_what_somebody_may_want_to_end_goes_by_grpc(short_path: Path) -> None:
    with answering(short_path, lambda it: it.sendall(framed(REPLY))) as questions:
        token = calls.current.set(calls.Calls())
        try:
            assert questions.find(REQUEST) is None
        finally:
            calls.current.reset(token)
        assert questions.find(REQUEST) == REPLY


def test_what_is_too_long_goes_by_grpc(short_path: Path) -> None:
    with answering(short_path, lambda it: it.sendall(framed(REPLY))) as questions:
        long = blobs_pb2.FetchRequest(ref="h" * QUESTION_MAX_BYTES)
        assert questions.find(long) is None
        assert questions.find(REQUEST) == REPLY


async def unanswered(_question: bytes, _holder: Process) -> bytes:
    return b""


@pytest.mark.parametrize(
    ("greeting", "pid", "uid", "is_welcome"),
    [
        ("find life", 7, 1000, True),
        ("find life", 7, 1001, False),
        ("find another", 7, 1000, False),
        ("find ", 7, 1000, False),
        ("find life", 0, 1000, False),
    ],
)
def test_only_who_is_served_and_can_be_watched_is_welcome(
    greeting: str, pid: int, uid: int, is_welcome: bool
) -> None:
    questions = door.Questions("life", frozenset({1000}), unanswered)
    assert questions.welcomes(greeting, Process(pid, 1, uid)) == is_welcome
