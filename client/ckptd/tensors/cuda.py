"""Streams, events and registered memory of CUDA: what `streams` asks for, in its words."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

_cuda: Any = torch.cuda  # of it this module uses what has no types
_PORTABLE = 1  # cudaHostRegisterPortable: for all devices of the process


class Mark:
    """An event."""

    def __init__(self, device: torch.device, event: torch.cuda.Event) -> None:
        self._device = device
        self._event = event

    def join(self) -> None:
        """Have the current stream wait for it, and not the caller.

        What is captured now runs when its graph is replayed: it is no step, and must not wait for
        anything outside the graph.
        """
        if not torch.cuda.is_current_stream_capturing():
            torch.cuda.current_stream(self._device).wait_event(self._event)

    def wait(self) -> None:
        """Sleep until it is passed."""
        with torch.cuda.device(self._device):  # a new thread would open a context on device 0
            self._event.synchronize()


class Stream:
    """A side stream of one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _cuda.Stream(device)

    def run(self, work: Callable[[], None]) -> Mark:
        """Enqueue *work* behind the current stream; returns once it is enqueued."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            try:
                work()
            except BaseException:
                self._stream.synchronize()
                raise
            event = _cuda.Event(blocking=True)  # a core is the trainer's, not to be spun on
            event.record(self._stream)
        return Mark(self._device, event)

    def register(self, address: int, size_bytes: int) -> None:
        """Lock the pages, so that copies to them neither block nor go through other memory."""
        with torch.cuda.device(self._device):
            code = _cuda.cudart().cudaHostRegister(address, size_bytes, _PORTABLE)
            if int(code):
                self._forget_failure()
                raise RuntimeError(f"cudaHostRegister: {_words(code)}")

    def unregister(self, address: int) -> None:
        """Unlock the pages."""
        with torch.cuda.device(self._device):
            code = _cuda.cudart().cudaHostUnregister(address)
            if int(code):
                self._forget_failure()
                raise RuntimeError(f"cudaHostUnregister: {_words(code)}")

    def _forget_failure(self) -> None:
        """Have CUDA tell us of it, or the next kernel of the training would be blamed."""
        with contextlib.suppress(RuntimeError), torch.cuda.stream(self._stream):
            torch.zeros(1, device=self._device)


def _words(code: object) -> str:
    return str(_cuda.cudart().cudaGetErrorString(code))
