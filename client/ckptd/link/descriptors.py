"""Receives file descriptors from the daemon, by its sibling socket."""

from __future__ import annotations

import array
import json
import os
import socket
from pathlib import Path

from ckptd.link import discovery
from ckptd_proto import errors

ANSWER_S = 10.0


def receive(path: Path, token: str) -> int:
    """Return the descriptor that the daemon at *path* offers for *token*; the caller closes it."""
    try:
        with connected(path, token, timeout_s=ANSWER_S) as sock:
            return _received(sock)
    except OSError as error:
        text = f"the daemon at {path} handed over no descriptor ({error}); try again"
        raise errors.Unavailable(text) from error


def connected(path: Path, request: str, *, timeout_s: float) -> socket.socket:
    """Return a connection to the sibling socket of the daemon at *path*, *request* being sent.

    Raises `OSError`.
    """
    sibling = path.with_name(path.name + discovery.DESCRIPTORS_SUFFIX)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        _connect(sock, sibling)
        sock.sendall(request.encode() + b"\n")
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(sock: socket.socket, path: Path) -> None:
    if len(os.fsencode(path)) <= discovery.SOCKET_PATH_MAX_BYTES:
        sock.connect(str(path))
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:  # a short way to the same place
        sock.connect(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)


def _received(sock: socket.socket) -> int:
    fds = array.array("i")
    data, ancillary, _flags, _address = sock.recvmsg(
        1 << 16, socket.CMSG_SPACE(fds.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: fds.itemsize])
            return fds[0]
    if not data:
        raise ConnectionResetError("it closed the connection")
    answer = json.loads(data)
    raise errors.rebuilt(answer["error"], answer["message"])
