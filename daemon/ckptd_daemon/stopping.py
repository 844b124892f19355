"""How the daemon ends: by request or from idleness, finishing what it may."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Protocol

import anyio
from anyio.abc import TaskStatus

from ckptd_daemon.sessions import Sessions

logger = logging.getLogger(__name__)

IDLE_CHECKS = 10  # per `idle_s`
ENDING_S = 5.0  # for what a drained daemon puts away


class Half(Protocol):
    """What fetching and saving both promise to whoever runs them."""

    @property
    def is_idle(self) -> bool:
        """Nothing is staged, leased or in flight."""

    def refuse_new(self) -> None:
        """From now on new work raises `Unavailable`."""

    async def wait_idle(self) -> None:
        """Wait until the work in hand is done; leases do not count, they survive a restart."""

    def unfinished(self) -> list[str]:
        """Return a sentence per piece of work that the next start will resume."""


class Stopping:
    """Whether the daemon is to end; the second signal does not ask."""

    def __init__(self) -> None:
        self._asked = anyio.Event()

    @property
    def is_asked(self) -> bool:
        """Someone asked."""
        return self._asked.is_set()

    def ask(self) -> None:
        """Ask; again is no harm."""
        self._asked.set()

    async def wait_asked(self) -> None:
        """Wait until someone asks."""
        await self._asked.wait()

    async def listen(self, *, task_status: TaskStatus[None]) -> None:
        """Take SIGTERM and SIGINT for asking, and a second one for an order."""
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                if self.is_asked:
                    logger.warning("ended at once by a second signal")
                    os._exit(128 + number)
                logger.info("stopping", extra={"signal": signal.Signals(number).name})
                self.ask()


async def drain(halves: Sequence[Half], drain_s: float) -> None:
    """Take no new work, finish what fits, and say what the next start will resume."""
    for half in halves:
        half.refuse_new()
    with anyio.move_on_after(drain_s):
        for half in halves:
            await half.wait_idle()
    for sentence in (sentence for half in halves for sentence in half.unfinished()):
        logger.warning("left for the next start: %s", sentence)
    logger.info("stopped")


def ending() -> threading.Timer:
    """Return what, once started, ends the process even if a disk keeps its threads for ever.

    Everything they may be doing is resumed by the next start. It is not cancelled: Python waits for
    threads that nobody waits for any more, and the process may not.
    """
    timer = threading.Timer(ENDING_S, os._exit, (0,))
    timer.daemon = True
    return timer


async def ask_when_idle(
    stopping: Stopping, idle_s: float, sessions: Sessions, halves: Sequence[Half]
) -> None:
    """End a private daemon that nobody has needed for *idle_s*."""
    since = time.monotonic()
    while time.monotonic() - since < idle_s:
        await anyio.sleep(idle_s / IDLE_CHECKS)
        if len(sessions) > 0 or not all(half.is_idle for half in halves):
            since = time.monotonic()
    logger.info("stopping: idle", extra={"idle_s": idle_s})
    stopping.ask()
