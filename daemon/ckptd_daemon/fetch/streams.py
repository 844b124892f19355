"""Parallel streams over the chunks that a partial lacks; decided here, done by their threads."""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.abc import TaskGroup

from ckptd_daemon.config import Config
from ckptd_daemon.fetch import ranges
from ckptd_daemon.fetch.progress import Gauge, Phase
from ckptd_daemon.fetch.retry import Patience
from ckptd_daemon.fetch.stream import NotFastError, Stream
from ckptd_daemon.sources.source import Endpoint, Object, TransientError
from ckptd_daemon.store.buffers import Buffers
from ckptd_daemon.store.partials import Partial

logger = logging.getLogger(__name__)

RUN_CHUNKS = 2  # per request: enough to hide its latency, little to lose
THREADS = 64  # of the whole daemon
STALL_CHECKS = 8  # per `stall_s`


class Threads:
    """Room for the threads of all streams of the daemon."""

    def __init__(self) -> None:
        self.fetching = CapacityLimiter(THREADS)
        self.connecting = CapacityLimiter(THREADS)  # an abandoned one keeps its place until it ends


class Streams:
    """The streams of one flight."""

    def __init__(
        self,
        config: Config,
        obj: Object,
        endpoint: Endpoint,
        partial: Partial,
        gauge: Gauge,
    ) -> None:
        self._config = config
        self._object = obj
        self._endpoint = endpoint
        self._partial = partial
        self._gauge = gauge
        self._runs = deque(ranges.runs(partial.missing(), RUN_CHUNKS))  # in order, for a hasher
        self._open: set[Stream] = set()
        self._failure: Exception | None = None  # the first; it ends the others
        self._is_fast = True  # until the origin does what only the general path can read

    async def fill(self, buffers: Buffers, threads: Threads) -> None:
        """Bring the missing chunks; returns early if the origin is not one for this path."""
        self._gauge.done_bytes = self._done_bytes
        async with anyio.create_task_group() as watch:
            watch.start_soon(self._watch)
            async with anyio.create_task_group() as tasks:
                for _ in range(min(self._config.streams, len(self._runs))):
                    tasks.start_soon(self._pump, tasks, buffers, threads)
            watch.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    def _done_bytes(self) -> int:
        return self._partial.landed_bytes + sum(stream.unlanded_bytes for stream in self._open)

    async def _watch(self) -> None:
        """Interrupt streams that stall, and all of them when the flight ends."""
        try:
            while True:
                await anyio.sleep(self._config.stall_s / STALL_CHECKS)
                for stream in list(self._open):
                    if stream.is_silent(time.monotonic() - self._config.stall_s):
                        stream.interrupt()
        finally:
            self._interrupt()

    def _interrupt(self) -> None:
        for stream in self._open:
            stream.interrupt()

    async def _pump(self, tasks: TaskGroup, buffers: Buffers, threads: Threads) -> None:
        """Bring one run after the other until none is left; whatever is wrong ends all pumps."""
        patience = Patience(self._object.title, self._config.retries)
        run = range(0)
        try:
            async with buffers.lend() as buffer:
                while self._is_fast and (run or self._runs):
                    run = await self._bring(run, buffer, threads, patience)
        except NotFastError as error:
            logger.info("%s takes the general path: %s", self._object.title, error)
            self._is_fast = False
        except Exception as error:  # noqa: BLE001  re-raised by `fill`
            self._failure = self._failure or error
            tasks.cancel_scope.cancel()
            self._interrupt()

    async def _bring(
        self, run: range, buffer: memoryview, threads: Threads, patience: Patience
    ) -> range:
        """Bring runs, *run* first, over one connection; returns what it left when it broke."""
        try:
            async with self._connected(threads) as stream:
                while self._is_fast and stream.is_connected and (run or self._runs):
                    run = run or self._runs.popleft()
                    work = functools.partial(stream.fetch, run, self._partial, buffer)
                    await to_thread.run_sync(work, limiter=threads.fetching)
                    run = range(0)
                    patience.succeeded()
        except TransientError as error:
            left = [index for index in run if index not in self._partial.landed]
            if len(left) < len(run):
                patience.succeeded()
            run = range(left[0], run.stop) if left else range(0)
            if not self._open:
                self._gauge.retry(error)
            await patience.wait(error)
        return run

    @asynccontextmanager
    async def _connected(self, threads: Threads) -> AsyncIterator[Stream]:
        """Yield a new connection, and close it at the end."""
        stream = Stream(self._object, self._endpoint, self._config.connect_s, self._config.stall_s)
        try:
            await to_thread.run_sync(
                stream.connect, limiter=threads.connecting, abandon_on_cancel=True
            )
            self._open.add(stream)
            self._gauge.streams = len(self._open)
            self._gauge.enter(Phase.DOWNLOADING)
            yield stream
        finally:
            self._open.discard(stream)
            self._gauge.streams = len(self._open)
            stream.interrupt()
            stream.close()
