from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from ckptd import errors
from ckptd.link import calls
from fakes.waiting import eventually, is_somebody_in

HANG_S = 30.0
UNARY = ("/unary", *calls.PROMPT)


class Hanging(grpc.GenericRpcHandler):
    """Every method waits until its caller is gone."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.left = threading.Semaphore(0)

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method in UNARY:
            return grpc.unary_unary_rpc_method_handler(self._hang)
        return grpc.unary_stream_rpc_method_handler(self._stream)

    def _hang(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        gone = threading.Event()
        if not context.add_callback(gone.set):  # gone before it came
            gone.set()
        self.entered.release()
        gone.wait(HANG_S)
        self.left.release()
        return b""

    def _stream(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield self._hang(request, context)


@contextmanager
def hanging(path: Path) -> Iterator[tuple[Hanging, calls.Channel]]:
    handler = Hanging()
    with futures.ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, handlers=(handler,))
        server.add_insecure_port(f"unix:{path}")
        server.start()
        channel = calls.Channel(grpc.insecure_channel(f"unix:{path}"))
        yield handler, channel
        channel.close()
        server.stop(None).wait()


@pytest.mark.parametrize("method", [*UNARY, "/stream"])
def test_another_thread_can_end_the_calls_of_a_piece_of_work(method: str, short_path: Path) -> None:
    tracked = calls.Calls()

    def work(channel: calls.Channel) -> None:
        calls.current.set(tracked)
        if method in UNARY:
            channel.unary_unary(method)(b"")
        else:
            list(channel.unary_stream(method)(b""))

    with hanging(short_path / "s") as (handler, channel), futures.ThreadPoolExecutor(1) as pool:
        working = pool.submit(work, channel)
        assert handler.entered.acquire(timeout=HANG_S)
        tracked.cancel()
        with pytest.raises((errors.Aborted, grpc.RpcError)):
            working.result(HANG_S)
        assert handler.left.acquire(timeout=HANG_S), "the server learns of it"
        with pytest.raises((errors.Aborted, grpc.RpcError)):  # cancelled is cancelled
            pool.submit(work, channel).result(HANG_S)


@pytest.mark.parametrize("method", UNARY)
def test_ctrl_c_ends_the_wait_for_an_answer(method: str, short_path: Path) -> None:
    with hanging(short_path / "s") as (handler, channel), futures.ThreadPoolExecutor(1) as pool:

        def interrupt() -> None:
            assert handler.entered.acquire(timeout=HANG_S)
            if method not in calls.PROMPT:  # the daemon may have a call before its caller has it
                eventually(lambda: is_somebody_in("result"))
            os.kill(os.getpid(), signal.SIGINT)

        interrupting = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            channel.unary_unary(method)(b"", timeout=2 * HANG_S)
        interrupting.result(HANG_S)
