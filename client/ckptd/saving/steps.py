"""How long training steps take, and how much longer while a save is on its way.

An optimizer in the state tells when a step has ended. It knows nothing of saves and holds nothing
of theirs; a model that is stepped otherwise, or compiled whole, tells nothing.
"""

from __future__ import annotations

import statistics
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch.optim import Optimizer

SAMPLES_MIN: Final = 3
"""Fewer steps, on either side, tell nothing."""
_SAMPLES_MAX: Final = 256
_DEPTH_MAX: Final = 4
_FEW: Final = 64
"""Optimizers are not looked for among more: those are tensors of a model, or data."""


class Window:
    """The steps that one save has seen."""

    def __init__(self, usual: Sequence[float]) -> None:
        """*usual* are durations of steps before it, while no save was on its way."""
        self._usual = tuple(usual)
        self._during: deque[float] = deque(maxlen=_SAMPLES_MAX)
        self.is_open = True

    def add(self, duration_s: float) -> None:
        """Note a step that was within the save from its beginning to its end."""
        self._during.append(duration_s)

    def close(self) -> None:
        """Note that the save has ended."""
        self.is_open = False

    @property
    def inflation(self) -> float | None:
        """How much longer the median step was, as a share of the usual; None if too few tell."""
        during = tuple(self._during)
        if min(len(during), len(self._usual)) < SAMPLES_MIN:
            return None
        return statistics.median(during) / statistics.median(self._usual) - 1


class StepClock:
    """Times the steps of the first optimizer in the state; of several, that one stands for all."""

    def __init__(self) -> None:
        self._optimizer: weakref.ref[Optimizer] | None = None
        self._hook: Any = None
        self._ended_s: float | None = None  # the last step; None if the next one says nothing
        self._usual: deque[float] = deque(maxlen=_SAMPLES_MAX)
        self._windows: list[Window] = []

    def watch(self, state: Any) -> None:
        """Listen to the optimizer in *state*, if there is one and it is not the one of before."""
        self._ended_s = None  # what is between two steps now is not training
        found = _first_optimizer(state, _DEPTH_MAX)
        if found is None or (self._optimizer is not None and self._optimizer() is found):
            return
        self.close()
        self._usual.clear()
        try:
            self._hook = found.register_step_post_hook(self._tick)
        except AttributeError:
            return  # one that wraps another, and has no hooks of its own
        self._optimizer = weakref.ref(found)

    def begin(self) -> Window:
        """Return the window of a save that is on its way from now on, until it is closed."""
        self._windows = [window for window in self._windows if window.is_open]
        window = Window(self._usual)
        self._windows.append(window)
        self._ended_s = time.perf_counter()
        return window

    def close(self) -> None:
        """Listen no more."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
            self._optimizer = None

    def _tick(self, *_: object) -> None:
        """Note that a step has ended; runs in the training, after each."""
        now_s, began_s = time.perf_counter(), self._ended_s
        self._ended_s = now_s
        if not self._windows:
            if began_s is not None:
                self._usual.append(now_s - began_s)
            return
        still = [window for window in self._windows if window.is_open]
        if began_s is not None:
            for window in still:
                window.add(now_s - began_s)
        if len(still) < len(self._windows):  # one ended meanwhile: the step belongs to neither side
            self._windows = still


def _first_optimizer(value: Any, depth: int) -> Optimizer | None:
    if isinstance(value, Optimizer):
        return value
    below = list(value.values()) if isinstance(value, Mapping) else value
    if not isinstance(below, list | tuple) or len(below) > _FEW or depth == 0:
        return None
    return next((one for each in below if (one := _first_optimizer(each, depth - 1))), None)
