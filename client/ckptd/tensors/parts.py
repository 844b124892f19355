"""The modules and optimizers in a state: under which names their parts are saved.

Names are those of torch's `get_model_state_dict` and `get_optimizer_state_dict`: of the
parameters, without what wrappers add. (Torch's own functions are not used because they step a
fresh optimizer, which changes what the next real step does, and take longer than the copy.)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer
from typing_extensions import TypeIs

from ckptd.tensors.tree import Path, name_of
from ckptd_proto import errors

_WRAPPERS: tuple[tuple[type, str], ...] = (
    (DistributedDataParallel, "module"),
    (DataParallel, "module"),
    (CheckpointWrapper, "_checkpoint_wrapped_module"),
)


class Stateful(Protocol):
    """Anything that gives its state away and takes it back."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Take the state over."""


def is_stateful(value: object) -> TypeIs[Stateful]:
    """Say whether *value* is one; a class of such objects is not."""
    kind = type(value)
    return callable(getattr(kind, "state_dict", None)) and callable(
        getattr(kind, "load_state_dict", None)
    )


@dataclass(frozen=True, slots=True)
class ModuleNames:
    """A module's state, and how the keys of its own `state_dict` are called in a checkpoint."""

    module: nn.Module
    by_key: dict[str, str]

    @classmethod
    def of(cls, module: nn.Module, state: Mapping[str, Any]) -> ModuleNames:
        """Return the names of *state*, which is `module.state_dict()`."""
        clean = _Cleaner(module)
        return cls(module, {key: clean(key) for key in state})


class Parts:
    """The modules and optimizers of one state, matched by the parameters they share."""

    def __init__(self, state: Mapping[Any, Any]) -> None:
        self._modules: list[tuple[str, dict[int, str]]] = []
        for path, value in _parts(state, ()):
            if isinstance(value, nn.Module):
                clean = _Cleaner(value)
                names = {id(param): clean(key) for key, param in value.named_parameters()}
                self._modules.append((name_of(path), names))

    def parameter_names(self, name: str, optimizer: Optimizer) -> list[str] | None:
        """Return what *optimizer*'s parameters are called, in its own order.

        None if no module of the state owns any. Raises `InvalidArgument` if only some are owned.
        """
        params = [param for group in optimizer.param_groups for param in group["params"]]
        for _, names in self._modules:
            if all(id(param) in names for param in params):
                return [names[id(param)] for param in params]
        found = [self._found(id(param)) for param in params]
        known = [each for each in found if each is not None]
        if not known:
            return None
        if len(known) < len(params):
            text = (
                f"{len(params) - len(known)} of the {len(params)} parameters of the optimizer"
                f" {name!r} belong to no module of the state: add the module that owns them"
            )
            raise errors.InvalidArgument(text)
        return known

    def _found(self, param: int) -> str | None:
        for module, names in self._modules:
            if param in names:
                return f"{module}.{names[param]}"
        return None


def named_state(optimizer: Optimizer, names: list[str] | None) -> dict[str, Any]:
    """Return the optimizer's state with parameters called by *names*; by number if None."""
    state: dict[str, Any] = optimizer.state_dict()
    if names is None:
        return state
    return {
        **state,
        "state": {names[number]: values for number, values in state["state"].items()},
        "param_groups": [
            {**group, "params": [names[number] for number in group["params"]]}
            for group in state["param_groups"]
        ],
    }


def endless(state: Mapping[Any, Any]) -> errors.InvalidArgument:
    """Return the refusal of a state that has been followed deeper than Python can go."""
    names = ""
    for key, value in state.items():
        try:
            list(_parts(value, (str(key),)))
        except RecursionError:
            names = f"{key!r} of "
    text = f"{names}the state contains itself, or is nested too deeply: take that out of it"
    return errors.InvalidArgument(text)


def _parts(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _parts(item, (*path, str(key)))
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from _parts(item, (*path, position))
    elif isinstance(value, nn.Module):
        yield path, value


def _wrappers() -> tuple[tuple[type, str], ...]:
    """Return the classes of wrappers; the compiler's only if it is loaded, for that takes long."""
    compiler = sys.modules.get("torch._dynamo")
    compiled = getattr(compiler, "OptimizedModule", None)
    return (*_WRAPPERS, (compiled, "_orig_mod")) if compiled else _WRAPPERS


class _Cleaner:
    """Takes out of a key what the wrappers inside a module put there."""

    def __init__(self, module: nn.Module) -> None:
        wrappers = _wrappers()
        self._wrapped: list[tuple[str, str]] = []
        for path, part in module.named_modules():
            if isinstance(part, FullyShardedDataParallel):
                text = (
                    f"the module {path or 'itself'!r} is sharded by FullyShardedDataParallel,"
                    " whose flat parameters have no place of their own: shard it by"
                    " torch.distributed.fsdp.fully_shard"
                )
                raise errors.Unimplemented(text)
            for kind, inner in wrappers:
                if isinstance(part, kind):
                    prefix = f"{path}." if path else ""
                    self._wrapped.append((f"{prefix}{inner}.", prefix))
        self._wrapped.reverse()  # the innermost first, so that outer prefixes still match

    def __call__(self, key: str) -> str:
        for wrapped, plain in self._wrapped:
            if key.startswith(wrapped):
                key = plain + key.removeprefix(wrapped)
        return key
