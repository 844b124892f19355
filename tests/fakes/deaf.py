"""Somebody who never answers a connect: the queue is full, and the kernel drops who knocks."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def deaf(address: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Be there, and take no connection; gives the port."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((address, port))
        listener.listen(0)
        for _ in range(2):  # one waits to be accepted, and nobody else may
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
