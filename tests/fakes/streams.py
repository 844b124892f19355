"""A device's stream, played by a thread: for CPU tensors, as a test wants it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ckptd.tensors import streams

HELD_S = 60.0


class ThreadMark:
    """A mark of a `ThreadStream`; who joins it blocks, for there is no other order on a CPU."""

    def __init__(self, stream: ThreadStream, done: Future[None]) -> None:
        self._stream = stream
        self._done = done

    def join(self) -> None:
        self._stream.joined.set()
        self._done.exception()

    def wait(self) -> None:
        self._stream.awaited.set()
        self._done.result()


class ThreadStream:
    """Does work in order; holds it, lets it fail, and refuses memory when it is told to."""

    def __init__(self) -> None:
        self.works = 0
        """How many were given to it."""
        self.done = 0
        """How many are over."""
        self.failure: RuntimeError | None = None
        """What every work fails with, once it is let go."""
        self.joined = threading.Event()
        """Somebody has come who must wait for it."""
        self.awaited = threading.Event()
        """Somebody wants to know that something has been done."""
        self.registered: dict[int, int] = {}
        """Size by address."""
        self.refuses_after: int | None = None
        """How many pieces of memory it takes."""
        self._thread = ThreadPoolExecutor(1)
        self._held_from: int | None = None
        self._gate = threading.Event()

    def hold(self, *, after: int = 0) -> None:
        """Do nothing until `release`, but *after* so many works."""
        self._gate.clear()
        self.joined.clear()
        self.awaited.clear()
        self._held_from = self.works + after

    def release(self) -> None:
        self._held_from = None
        self._gate.set()

    def run(self, work: Callable[[], None]) -> ThreadMark:
        is_held = self._held_from is not None and self.works >= self._held_from
        self.works += 1
        return ThreadMark(self, self._thread.submit(self._do, work, is_held=is_held))

    def register(self, address: int, size_bytes: int) -> None:
        if self.refuses_after is not None and len(self.registered) >= self.refuses_after:
            raise RuntimeError("cudaHostRegister: out of memory")
        assert address not in self.registered
        self.registered[address] = size_bytes

    def unregister(self, address: int) -> None:
        assert is_mapped(address), "it is unmapped already"
        del self.registered[address]

    def close(self) -> None:
        self.release()
        self._thread.shutdown()

    def _do(self, work: Callable[[], None], *, is_held: bool) -> None:
        try:
            if is_held:
                assert self._gate.wait(HELD_S), "nobody released it"
            if self.failure is not None:
                raise self.failure
            work()
        finally:
            self.done += 1


@contextmanager
def playing() -> Iterator[ThreadStream]:
    """Have CPU tensors copied as if they lay on a device, by the stream that is given."""
    stream = ThreadStream()
    streams.offer("cpu", lambda _: stream)
    try:
        yield stream
    finally:
        stream.close()
        streams.offer("cpu", None)


def is_mapped(address: int) -> bool:
    """Say whether this process has memory at *address*."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(bound, 16) for bound in line.split()[0].split("-"))
        if start <= address < end:
            return True
    return False
