"""Work that a device does in order, beside the training: what the copies of a save need of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

import torch

from ckptd.tensors import cuda

PIECE_BYTES: Final = 256 << 20
"""What is registered with a driver at once: others wait meanwhile. No copy may cross its bounds."""


class Mark(Protocol):
    """A place in the order; passed when all before it has been done."""

    def join(self) -> None:
        """Have what the caller computes next come after it; need not block the caller."""

    def wait(self) -> None:
        """Block until it is passed; raises what went wrong before it. Any thread may."""


class Stream(Protocol):
    """A device's order of work beside the one that the training uses."""

    def run(self, work: Callable[[], None]) -> Mark:
        """Have *work* done, in the order of the calls, after all that the caller has computed.

        Raises what went wrong if none of it is under way any more.
        """

    def register(self, address: int, size_bytes: int) -> None:
        """Have the device copy at full speed to host memory; raises `RuntimeError` if it will not."""

    def unregister(self, address: int) -> None:
        """Give up what was registered at *address*, before it is unmapped."""


Make = Callable[[torch.device], Stream]

_makers: dict[str, Make] = {"cuda": cuda.Stream}
_made: dict[torch.device, Stream] = {}  # one for each device, whoever saves


def offer(kind: str, make: Make | None) -> None:
    """Have copies from devices called *kind* go beside the training; None: no more."""
    for device in [device for device in _made if device.type == kind]:
        del _made[device]
    if make is None:
        _makers.pop(kind, None)
    else:
        _makers[kind] = make


def of(device: torch.device) -> Stream | None:
    """Return the stream for copies from *device*; None: they are made on the spot."""
    made = _made.get(device)
    if made is None and (make := _makers.get(device.type)) is not None:
        made = _made[device] = make(device)
    return made


def pieces(address: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Return the parts of memory at *address* that lie between bounds: (start, end) in it."""
    start = 0
    while start < size_bytes:
        end = min(size_bytes, start + PIECE_BYTES - (address + start) % PIECE_BYTES)
        yield start, end
        start = end
