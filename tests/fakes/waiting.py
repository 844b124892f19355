"""The one place where a test waits for something that tells nobody."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

from anyio import to_thread

T = TypeVar("T")


def eventually(condition: Callable[[], T], timeout_s: float = 30.0) -> T:
    """Return the first truthy value of *condition*; raises `AssertionError` after *timeout_s*."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {condition}"
        time.sleep(0.01)
    return found


async def until(condition: Callable[[], object]) -> None:
    """Do as `eventually`, while the loop goes on."""
    await to_thread.run_sync(eventually, condition)


def is_somebody_in(function: str) -> bool:
    """Say whether a thread of this process is in *function*: what it waits for, if it does not leave."""
    stacks = [traceback.extract_stack(frame) for frame in sys._current_frames().values()]
    return any(frame.name == function for stack in stacks for frame in stack)
