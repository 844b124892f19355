"""`ckptd.Tensors` with await."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread

from ckptd.reading.tensors import Tensors as BlockingTensors
from ckptd.values import TensorInfo

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class Tensors:
    """As `ckptd.Tensors`; what waits is awaited, and is done in threads."""

    def __init__(self, tensors: BlockingTensors, limiter: anyio.CapacityLimiter) -> None:
        self._tensors = tensors
        self._limiter = limiter

    def __repr__(self) -> str:
        return repr(self._tensors)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors of the file, in its order."""
        return self._tensors.names

    @property
    def metadata(self) -> Mapping[str, str]:
        """The text that whoever wrote the file put beside the tensors."""
        return self._tensors.metadata

    def info(self, name: str) -> TensorInfo:
        """Return dtype, shape and size of a tensor, which need not be here."""
        return self._tensors.info(name)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __len__(self) -> int:
        return len(self._tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    async def get(self, name: str) -> torch.Tensor:
        """Return a tensor once its bytes are here; see `ckptd.Tensors.get`."""
        return await self._run(lambda: self._tensors.get(name))

    async def slice(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return some rows of a tensor; see `ckptd.Tensors.slice`."""
        return await self._run(lambda: self._tensors.slice(name, start, stop))

    async def items(self) -> AsyncIterator[tuple[str, torch.Tensor]]:
        """Yield every tensor that was asked for, with its name, as they arrive."""
        tensors = self._tensors.items()
        while found := await self._run(lambda: _next(tensors)):
            yield found

    async def wait(self) -> None:
        """Wait until all that was asked for is here; see `ckptd.Tensors.wait`."""
        await self._run(self._tensors.wait)

    async def _run(self, method: Callable[[], T]) -> T:
        """Run *method* in a thread; one that was cancelled ends with the block at the latest."""
        return await anyio.to_thread.run_sync(method, abandon_on_cancel=True, limiter=self._limiter)


def _next(tensors: Iterator[T]) -> T | None:
    return next(tensors, None)
