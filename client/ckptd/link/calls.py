"""Lets another thread end the calls of a piece of work, which gRPC's blocking calls do not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import grpc

from ckptd_proto import errors

PROMPT = frozenset({"/ckptd.v1.Blobs/Find"})
"""Methods that the daemon answers at once, whatever happens."""


class Calls:
    """The calls that one piece of work has open; cancelling is for good."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._open: set[grpc.RpcContext] = set()
        self.cancelled = threading.Event()

    def add(self, call: grpc.RpcContext) -> None:
        """Track *call* until it ends."""
        with self._lock:
            self._open.add(call)
        if not call.add_callback(lambda: self._drop(call)):
            self._drop(call)
        if self.cancelled.is_set():
            call.cancel()

    def cancel(self) -> None:
        """End the calls that are open and each one to come."""
        self.cancelled.set()
        with self._lock:
            ending = list(self._open)
        for call in ending:
            call.cancel()

    def _drop(self, call: grpc.RpcContext) -> None:
        with self._lock:
            self._open.discard(call)


current: ContextVar[Calls | None] = ContextVar("current", default=None)
"""Where the calls of this context are tracked, if somebody may want to end them."""


@contextmanager
def untracked() -> Iterator[None]:
    """Let the calls inside the block run to their end, though the work was cancelled."""
    token = current.set(None)
    try:
        yield
    finally:
        current.reset(token)


def check_not_cancelled() -> None:
    """Raise `Aborted` if the work of this context was cancelled."""
    calls = current.get()
    if calls is not None and calls.cancelled.is_set():
        raise errors.Aborted("the call was cancelled")


class Channel(grpc.Channel):
    """A channel whose calls are tracked in `current`, and end with the caller's exceptions."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self.instance = ""
        """Which life of the daemon the calls are for, once it has said so.

        gRPC reconnects by itself, and the daemon's next life must know that it is not meant.
        """

    def unary_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Return a method that sends one message and waits for one.

        What is prompt, and nobody else can end, is waited for on the caller's own thread: that
        halves its cost, and gRPC cannot end it, on Ctrl-C either.
        """
        call = self._channel.unary_unary(method, *arguments, **options)
        waiting = self._waiting(call.future)
        if method not in PROMPT:
            return waiting
        alone = self._tracked(call)

        def ask(*arguments: Any, **options: Any) -> Any:
            return (alone if current.get() is None else waiting)(*arguments, **options)

        return ask

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        """Return a method that sends messages and waits for one."""
        return self._waiting(self._channel.stream_unary(*arguments, **options).future)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        """Return a method that sends one message and gives an iterator."""
        return self._tracked(self._channel.unary_stream(*arguments, **options))

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        """Return a method that sends messages and gives an iterator."""
        return self._tracked(self._channel.stream_stream(*arguments, **options))

    def subscribe(self, callback: Callable[..., None], try_to_connect: bool = False) -> None:
        """Tell *callback* how the connection is."""
        self._channel.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Callable[..., None]) -> None:
        """Tell it no longer."""
        self._channel.unsubscribe(callback)

    def close(self) -> None:
        """End the connection and every call on it."""
        self._channel.close()

    def _tracked(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def start(*arguments: Any, **options: Any) -> Any:
            if self.instance:
                options["metadata"] = (("ckptd-instance", self.instance),)
            call = method(*arguments, **options)
            if (calls := current.get()) is not None:
                calls.add(call)
            return call

        return start

    def _waiting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        start = self._tracked(method)

        def wait(*arguments: Any, **options: Any) -> Any:
            call = start(*arguments, **options)
            try:
                return call.result()
            except grpc.FutureCancelledError as error:
                raise errors.Aborted("the call was cancelled") from error
            except BaseException:  # Ctrl-C above all; no harm to a call that has ended
                call.cancel()
                raise

        return wait
