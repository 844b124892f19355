"""Says in the log that a daemon does not answer, rather than failing: it may go on at any time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc

from ckptd_proto.v1 import node_pb2

if TYPE_CHECKING:
    from ckptd.link.connection import Stubs

logger = logging.getLogger(__name__)

LOOK_S = 30.0
"""How often a daemon that is waited for is asked whether it is there."""
ANSWER_S = 5.0


@contextmanager
def noticed(stubs: Stubs) -> Iterator[None]:
    """Log it if the daemon of *stubs* falls silent inside the block, and again when it is back.

    A call without a deadline would else wait without a word for one that is stopped.
    """
    is_over = threading.Event()
    threading.Thread(
        target=_watch, args=(stubs, is_over), name="ckptd-silence", daemon=True
    ).start()
    try:
        yield
    finally:
        is_over.set()


def _watch(stubs: Stubs, is_over: threading.Event) -> None:
    is_silent = False
    while not is_over.wait(LOOK_S):
        answers = _answers(stubs)
        if is_over.is_set():
            return
        if not answers and not is_silent:
            logger.warning(
                "the daemon has not answered for %g s, and is waited for: it may be stopped, or its "
                "node be short of CPU or memory; look at its process and its log",
                ANSWER_S,
            )
        elif answers and is_silent:
            logger.warning("the daemon answers again")
        is_silent = not answers


def _answers(stubs: Stubs) -> bool:
    try:
        stubs.node.Hello(node_pb2.HelloRequest(), timeout=ANSWER_S)
    except grpc.RpcError as error:
        return not (isinstance(error, grpc.Call) and error.code() is _LATE)
    return True


_LATE = grpc.StatusCode.DEADLINE_EXCEEDED
