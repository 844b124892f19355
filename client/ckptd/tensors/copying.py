"""The copies of one save from devices: some before `save()` returns, some beside the training.

What an optimizer owns stays as it is through the next forward and backward. So it is copied
meanwhile, and the optimizer's step comes after it. Everything else is copied on the spot.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from functools import partial
from types import TracebackType
from typing import Final, Self

import torch
from torch.optim import Optimizer

from ckptd.tensors import streams
from ckptd.tensors.owners import Owners
from ckptd.tensors.samples import Glance
from ckptd.tensors.streams import Mark, Stream
from ckptd_proto import errors

_Copy = tuple[memoryview, torch.Tensor]
_TORN: Final = (
    "the tensor {name!r} changed before it was copied, and not by an optimizer's step that calls"
    " hooks: by hand, or by the replay of a graph; from now on save() copies everything before it"
    " returns, as with overlap=False"
)


class _Part:
    """What one device has to copy."""

    def __init__(self) -> None:
        self.urgent: list[_Copy] = []
        self.owned: list[_Copy] = []
        self.names: list[str] = []  # of `owned`
        self.glance: Glance | None = None

    def copy_owned(self) -> None:
        _copy_all(self.owned)
        assert self.glance is not None  # taken before
        self.glance.look_again()


class Copying:
    """Takes note of copies, starts them, and says when they are complete.

    As a context manager it waits for what has been started if the block raises: the memory may
    be somebody else's soon.
    """

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        """What *optimizers* own, and nothing else, is copied beside the training."""
        self.is_torn = False
        """Whether something came before a copy that should have waited for it."""
        self._optimizers = optimizers
        self._owners: Owners | None = None  # looked at if a device is met
        self._parts: dict[Stream, _Part] = {}
        self._marks: list[Mark] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._settle()

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to wait for."""
        return not self._parts

    def takes(self, name: str, memory: memoryview, source: torch.Tensor) -> bool:
        """Take note of *source*, to be copied to *memory*; say if it is not on a device."""
        stream = streams.of(source.device)
        if stream is None:
            return False
        if self._owners is None:
            self._owners = Owners(self._optimizers)
        part = self._parts.setdefault(stream, _Part())
        if self._owners.own(source):
            part.owned.append((memory, source))
            part.names.append(name)
        else:
            part.urgent.append((memory, source))
        return True

    def start(self) -> None:
        """Start them all; return when those of what nobody owns are complete."""
        urgent = []
        for stream, part in self._parts.items():
            if part.urgent:
                urgent.append(stream.run(partial(_copy_all, part.urgent)))
                self._marks.append(urgent[-1])
            if part.owned:
                sources = [source for _, source in part.owned]
                part.glance = Glance(zip(part.names, sources, strict=True))
                self._marks.append(stream.run(part.copy_owned))
        for mark in urgent:
            mark.wait()
        self._parts = {stream: part for stream, part in self._parts.items() if part.owned}

    def join(self) -> None:
        """Have what the caller computes next come after the copies; need not block."""
        for mark in self._marks:
            mark.join()

    def wait(self) -> None:
        """Block until they are complete. Any thread may.

        Raises `Aborted` if something but an optimizer's step came before them, or if the device
        failed.
        """
        glances = [part.glance for part in self._parts.values() if part.glance is not None]
        try:
            for mark in self._marks:
                mark.wait()
        except RuntimeError as error:
            self._settle()
            raise errors.Aborted(f"copying from the device failed: {error}") from error
        finally:
            self._parts = {}  # tensors and memory are let go of
        for glance in glances:
            if (name := glance.changed()) is not None:
                self.is_torn = True
                raise errors.Aborted(_TORN.format(name=name))

    def _settle(self) -> None:
        """Wait, whatever comes of it."""
        for mark in self._marks:
            with contextlib.suppress(RuntimeError):  # whoever called has a reason to tell
                mark.wait()


def _copy_all(copies: Iterable[_Copy]) -> None:
    for memory, source in copies:
        _copy(memory, source)


def _copy(memory: memoryview, source: torch.Tensor) -> None:
    """Copy the elements, in row-major order, as plain bytes that no registered piece's bound cuts."""
    target = torch.frombuffer(memory, dtype=torch.uint8)
    plain = source.resolve_neg().resolve_conj().contiguous()
    payload = plain.as_strided((plain.numel(),), (1,)).view(torch.uint8)
    for start, end in streams.pieces(target.data_ptr(), len(memory)):
        target[start:end].copy_(payload[start:end], non_blocking=True)
