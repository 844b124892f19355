"""A few threads for each root: one that hangs keeps none of another root, nor of the fetch half."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

EACH: Final = 16
"""Threads for one root."""

_limiters = RunVar[WeakValueDictionary[Path, CapacityLimiter]]("threads of each root")


async def run(
    root: Path, function: Callable[[*Ts], T], *arguments: *Ts, may_leave: bool = False
) -> T:
    """Do in a thread what touches *root*; it counts until it is done, whoever waits for it.

    Cancelled, this waits for the thread, or leaves it behind if it *may_leave*.
    """
    limiter, errand = _limiter_of(root), object()
    await limiter.acquire_on_behalf_of(errand)
    loop, claim = asyncio.get_running_loop(), threading.Lock()

    def go() -> T:
        if not claim.acquire(blocking=False):
            raise asyncio.CancelledError  # nobody waits any more
        try:
            return function(*arguments)
        finally:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(limiter.release_on_behalf_of, errand)

    try:
        alone = CapacityLimiter(1)
        return await to_thread.run_sync(go, limiter=alone, abandon_on_cancel=may_leave)
    finally:
        if claim.acquire(blocking=False):  # it never began
            limiter.release_on_behalf_of(errand)


def _limiter_of(root: Path) -> CapacityLimiter:
    limiters = _limiters.get(None)
    if limiters is None:
        limiters = WeakValueDictionary()
        _limiters.set(limiters)
    limiter = limiters.get(root)
    if limiter is None:
        limiter = limiters[root] = CapacityLimiter(EACH)
    return limiter
