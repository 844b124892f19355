"""Asks what is here already by the daemon's sibling socket, past gRPC and its threads.

It only ever helps: whatever is not plainly answered is asked again by gRPC, which does all of it.
What the two sides say is written down in the daemon's `door/questions`.
"""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path

from google.protobuf.message import DecodeError

from ckptd.link import calls, descriptors
from ckptd_proto.v1 import blobs_pb2

ANSWER_S = 2.0
QUESTION_MAX_BYTES = (64 << 10) - 4
ANSWER_BYTES = 64 << 10
_WELCOME = b"{}\n"
_LENGTH = struct.Struct(">I")


class Questions:
    """One connection to one life of a daemon; one thread at a time asks by it."""

    def __init__(self, path: Path) -> None:
        self.instance = ""
        """Which life of the daemon is asked, once it has said so; another one would not answer."""
        self.peer_name = ""
        """The name under which the daemon listens, once we are connected."""
        self._path = path
        self._turn = threading.Lock()  # guards what follows
        self._sock: socket.socket | None = None  # where no answer is on its way
        self._is_of_use = True

    def __repr__(self) -> str:
        return f"<Questions at {self._path} [{'of use' if self._is_of_use else 'of no use'}]>"

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Leave; the next question would connect again."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def find(
        self, request: blobs_pb2.FetchRequest, *, timeout_s: float | None = None
    ) -> blobs_pb2.FindReply | None:
        """Return the answer, empty if there is more to do; None if gRPC is to be asked instead.

        So it is when another thread is asking, when somebody may want to end the call, when the
        daemon takes no questions of ours, or does not answer at once.
        """
        question = request.SerializeToString()
        if len(question) > QUESTION_MAX_BYTES or calls.current.get() is not None:
            return None
        if not self._turn.acquire(blocking=False):
            return None
        try:
            limit_s = ANSWER_S if timeout_s is None else min(timeout_s, ANSWER_S)
            return blobs_pb2.FindReply.FromString(self._answered(question, limit_s))
        except (OSError, DecodeError):
            return None
        finally:
            self._turn.release()

    def _answered(self, question: bytes, timeout_s: float) -> bytes:
        sock, self._sock = self._sock or self._connected(timeout_s), None
        try:
            sock.settimeout(timeout_s)
            sock.sendall(_LENGTH.pack(len(question)) + question)
            answer = _answer(sock)
        except BaseException:  # Ctrl-C too: what comes now must not answer the next question
            sock.close()
            raise
        self._sock = sock
        return answer

    def _connected(self, timeout_s: float) -> socket.socket:
        if not self._is_of_use:
            raise ConnectionRefusedError("it takes no questions of ours")
        self._is_of_use = False  # until we are welcome
        sock = descriptors.connected(self._path, f"find {self.instance}", timeout_s=timeout_s)
        try:
            self.peer_name = str(sock.getpeername())
            self._is_of_use = sock.recv(len(_WELCOME)) == _WELCOME
            if not self._is_of_use:
                raise ConnectionRefusedError("it takes no questions of ours")
        except BaseException:
            sock.close()
            raise
        return sock


def _answer(sock: socket.socket) -> bytes:
    received, end = b"", _LENGTH.size
    while len(received) < end:
        part = sock.recv(ANSWER_BYTES)
        if not part:
            raise ConnectionResetError("it closed the connection")
        received += part
        if len(received) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(received)[0]
    if len(received) > end:
        raise ConnectionError("it said more than it was asked")
    return received[_LENGTH.size :]
