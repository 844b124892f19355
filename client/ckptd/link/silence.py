"""Says in the log that a daemon does not answer, rather than failing: it may go on at any time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from ckptd_proto.v1 import node_pb2, node_pb2_grpc

logger = logging.getLogger(__name__)

LOOK_S = 30.0
"""How often a daemon that is waited for is asked whether it is there."""
ANSWER_S = 5.0

_LATE = grpc.StatusCode.DEADLINE_EXCEEDED


class Silence:
    """Looks after one connection, by one thread, while any call waits without a deadline."""

    def __init__(self, node: node_pb2_grpc.NodeStub) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._waiting = 0
        self._over = threading.Event()

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Log it if the daemon falls silent inside the block, and again when it is back."""
        with self._lock:
            self._waiting += 1
            if self._waiting == 1:
                self._over = threading.Event()
                name, over = "ckptd-silence", self._over
                threading.Thread(target=self._watch, args=(over,), name=name, daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1
                if self._waiting == 0:
                    self._over.set()

    def _watch(self, over: threading.Event) -> None:
        is_silent = False
        while not over.wait(LOOK_S):
            answers = self._answers()
            if over.is_set():
                return
            if not answers and not is_silent:
                logger.warning(
                    "the daemon has not answered for %g s, and is waited for: it may be stopped, or "
                    "its node be short of CPU or memory; look at its process and its log",
                    ANSWER_S,
                )
            elif answers and is_silent:
                logger.warning("the daemon answers again")
            is_silent = not answers

    def _answers(self) -> bool:
        try:
            self._node.Hello(node_pb2.HelloRequest(), timeout=ANSWER_S)
        except grpc.RpcError as error:
            return not (isinstance(error, grpc.Call) and error.code() is _LATE)
        return True
