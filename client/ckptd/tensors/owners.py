"""Which tensors only an optimizer's step changes, so that they may be copied until it comes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

_Memory = tuple[int, torch.dtype, tuple[int, ...], tuple[int, ...]]


class Owners:
    """The optimizers of a state: their parameters, and what they keep for each."""

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self._owned: set[_Memory] = set()
        for optimizer in optimizers:
            if _tells(optimizer):
                self._own(optimizer)

    def own(self, tensor: torch.Tensor) -> bool:
        """Say whether *tensor*, which is no DTensor, is one of theirs: this very memory."""
        return _memory(tensor) in self._owned

    def _own(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            for param in group["params"]:
                if _is_stepped_in_backward(param):
                    continue
                kept = optimizer.state.get(param, {}).values()
                for tensor in (param, *kept):
                    if isinstance(tensor, torch.Tensor):
                        self._owned.add(_memory(tensor))


def _tells(optimizer: Optimizer) -> bool:
    """Say whether its steps call hooks: not if it only wraps another, or if hooks were taken off."""
    return bool(getattr(type(optimizer).step, "hooked", False))


def _is_stepped_in_backward(param: torch.Tensor) -> bool:
    return bool(
        getattr(param, "_in_backward_optimizers", None)
        or getattr(param, "_post_accumulate_grad_hooks", None)
    )


def _memory(tensor: torch.Tensor) -> _Memory:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.data_ptr(), local.dtype, tuple(local.shape), local.stride()
