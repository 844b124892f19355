"""The threads that write what is staged, and let the training go first.

Those of one root write one attempt at a time; a root that hangs keeps none of another.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio

from ckptd_daemon.config import Config
from ckptd_daemon.save import threads
from ckptd_daemon.save.images.allowance import Allowance, idle_s
from ckptd_daemon.save.turns import Turns

NICE: Final = 10
"""Of a writer, at least; its I/O comes after that of others, too (ioprio_set(2): derived from this)."""

Block = Callable[[], None]
"""Writes a piece."""


class _Purse:
    """The allowance, which all writers of the daemon share."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._lock = threading.Lock()

    def pause_s(self, used_s: float) -> float:
        with self._lock:
            return self._allowance.pause_s(used_s)


@dataclass(slots=True, eq=False)
class _Work:
    """The blocks still to be written, shared by the writers of one attempt."""

    blocks: Iterator[Block]
    purse: _Purse
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: threading.Event = field(default_factory=threading.Event)
    failures: list[BaseException] = field(default_factory=list)
    is_hurried: bool = False
    """The machine is about to go away: nobody is let go first."""

    def next(self) -> Block | None:
        with self.lock:
            return None if self.stopped.is_set() else next(self.blocks, None)

    def rest(self, used_s: float) -> None:
        if self.is_hurried:
            return
        self.stopped.wait(self.purse.pause_s(used_s))


class Writers:
    """Writes the blocks of one attempt at a time, for each root."""

    def __init__(self, config: Config) -> None:
        self._count = config.persist_threads
        self._is_hurried = False
        self._works: set[_Work] = set()  # what is being written
        share = config.persist_cpu_percent / 100
        self._purse = _Purse(Allowance(share, _cores(), idle_s=idle_s))
        self._turns = Turns[Path]()

    def hurry(self, *, is_hurried: bool) -> None:
        """Take the whole machine, what is being written included; or go back to yielding."""
        self._is_hurried = is_hurried
        for work in self._works:
            work.is_hurried = is_hurried

    async def write(self, root: Path, blocks: Iterable[Block]) -> None:
        """Write all *blocks* below *root*; raises what the first that failed raised.

        Ends at the next block when one fails or the caller is cancelled.
        """
        async with self._turns.take(root):
            work = _Work(iter(blocks), self._purse, is_hurried=self._is_hurried)
            self._works.add(work)
            try:
                async with anyio.create_task_group() as watch:
                    watch.start_soon(_stop_when_cancelled, work)
                    await threads.run(root, self._write, work)
                    watch.cancel_scope.cancel()
            finally:
                self._works.discard(work)
            if work.failures:
                raise work.failures[0]

    def _write(self, work: _Work) -> None:
        # of their own: the threads of the pool would stay nice for whoever has them next
        threads = [
            threading.Thread(target=_write_blocks, args=(work,), name=f"ckptd-write-{number}")
            for number in range(max(self._count, _cores()) if work.is_hurried else self._count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


async def _stop_when_cancelled(work: _Work) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        work.stopped.set()


def _write_blocks(work: _Work) -> None:
    if not work.is_hurried:
        me = threading.get_native_id()
        as_it_is = os.getpriority(os.PRIO_PROCESS, me)  # the daemon's own, which may be nicer
        os.setpriority(os.PRIO_PROCESS, me, max(NICE, as_it_is))
    began_s = time.thread_time()
    try:
        while (block := work.next()) is not None:
            block()
            ended_s = time.thread_time()
            work.rest(ended_s - began_s)
            began_s = ended_s
    except BaseException as failure:  # noqa: BLE001  raised by whoever waits for all writers
        work.failures.append(failure)
        work.stopped.set()
