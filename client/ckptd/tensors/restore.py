"""A user's state as a list of wishes, and how it takes what was saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ckptd.tensors.framing import dtype_of
from ckptd.tensors.index import Index, TensorInfo
from ckptd.tensors.load import Wish, check
from ckptd.tensors.parts import ModuleNames, Parts, Stateful, endless, is_stateful
from ckptd.tensors.state import capture, is_terminal, key_item
from ckptd.tensors.tree import LEAF, LIST, Node, Path, name_of
from ckptd_proto import errors

_LISTED_MAX = 20

Take = Callable[[], Any]
"""Run when all tensors are filled: puts the value in place and returns it."""
Target = Callable[[Node, TensorInfo], torch.Tensor | None]
"""The tensor that a leaf is to be read into; None for a new one."""


class Restore:
    """What one state asks of one checkpoint.

    Objects are read while it is made; tensors are only wished for.
    """

    def __init__(self, state: Any, index: Index, read_object: Callable[[str], Any]) -> None:
        if not isinstance(state, MutableMapping):
            text = f"the state is a {type(state).__name__}; give the dict that is to be filled"
            raise errors.InvalidArgument(text)
        self.wishes: list[Wish] = []
        self._problems: list[str] = []
        self._index = index
        self._read_object = read_object
        try:
            self._parts = Parts(state)
            self._take = self._mapping((), state) if state else lambda: None
        except RecursionError as error:
            raise endless(state) from error

    def check(self) -> None:
        """Raise `InvalidArgument`, listing everything that cannot be restored."""
        if self._problems:
            listed = "; ".join(self._problems[:_LISTED_MAX])
            more = len(self._problems) - _LISTED_MAX
            rest = f"; and {more} more" if more > 0 else ""
            text = (
                f"the checkpoint does not hold what the state asks for: {listed}{rest}. Give load()"
                " only the keys that were saved, as they were saved"
            )
            raise errors.InvalidArgument(text)

    def finish(self) -> None:
        """Hand everything over, now that the tensors are filled."""
        self._take()

    def _plan(self, path: Path, value: Any) -> Take:
        if isinstance(value, nn.Module):
            return self._module(path, value)
        if isinstance(value, Optimizer):
            return self._optimizer(path, value)
        if isinstance(value, torch.Tensor):
            return self._tensor(name_of(path), value)
        if is_stateful(value) and not isinstance(value, Mapping):
            return self._stateful(path, value)
        if isinstance(value, MutableMapping) and value:
            return self._mapping(path, value)
        if isinstance(value, list) and not is_terminal(value):
            return self._list(path, value)
        return self._value(path, value)

    def _mapping(self, path: Path, value: MutableMapping[Any, Any]) -> Take:
        takes = {key: self._plan((*path, key_item(path, key)), item) for key, item in value.items()}

        def take() -> Any:
            for key, taken in takes.items():
                value[key] = taken()
            return value

        return take

    def _list(self, path: Path, value: list[Any]) -> Take:
        count = len(self._index.tree.children(path))
        if self._index.tree.kind(path) != LIST or count != len(value):
            self._problems.append(f"{name_of(path)} has {count} items, and {len(value)} here")
            return lambda: value
        takes = [self._plan((*path, position), item) for position, item in enumerate(value)]

        def take() -> Any:
            value[:] = [taken() for taken in takes]
            return value

        return take

    def _tensor(self, name: str, value: torch.Tensor) -> Take:
        info = self._index.tensors.get(name)
        if info is None:
            is_object = name in self._index.objects
            self._problems.append(f"{name} is {'no tensor' if is_object else 'missing'}")
        elif problem := check(name, info, value):
            self._problems.append(problem)
        else:
            self.wishes.append(Wish(name, info, value))
        return lambda: value

    def _value(self, path: Path, value: Any) -> Take:
        if not self._is_saved(path):
            if value != {} or not isinstance(value, Mapping):  # an empty dict asks for nothing
                self._problems.append(f"{name_of(path)} is missing")
            return lambda: value
        restored = self._subtree(path)

        def take() -> Any:
            if isinstance(value, list) and isinstance(restored, list):
                value[:] = restored
                return value
            if isinstance(value, MutableMapping) and isinstance(restored, Mapping):
                value.update(restored)
                return value
            return restored

        return take

    def _module(self, path: Path, module: nn.Module) -> Take:
        state = module.state_dict()
        names = ModuleNames.of(module, state).by_key
        for key, value in state.items():
            item = (*path, names[key])
            if isinstance(value, torch.Tensor):
                self._tensor(name_of(item), value)
            elif self._is_saved(item):
                state[key] = self._subtree(item)
            else:
                self._problems.append(f"{name_of(item)} is missing")
        asked = {name_of((*path, name)) for name in names.values()}
        for leaf in self._index.tree.leaves(path):
            part = name = leaf.name
            while part and part not in asked:
                part = part.rpartition(".")[0]
            if not part:
                self._problems.append(f"{name} is saved, and the module has no such part")

        def take() -> Any:
            module.load_state_dict(state)  # tensors are in place; hooks and extra state want it
            return module

        return take

    def _stateful(self, path: Path, value: Stateful) -> Take:
        if not self._is_saved(path):
            self._problems.append(f"{name_of(path)} is missing")
            return lambda: value
        # what is sharded over ranks is read into its own shards, an optimizer's tensors into
        # themselves, everything else anew: who knows what it is to an object of the user's
        here = {
            name.removeprefix("."): leaf.value
            for name, leaf in capture({"": value.state_dict()}).leaves.items()
        }
        room = _Room(value) if isinstance(value, Optimizer) else None
        prefix = f"{name_of(path)}."

        def target(node: Node, info: TensorInfo) -> torch.Tensor | None:
            held = here.get(node.name.removeprefix(prefix))
            if isinstance(held, DTensor):
                return held
            return room.of(held, node.name, info) if room else None

        state = self._subtree(path, target)

        def take() -> Any:
            value.load_state_dict(state)
            return value

        return take

    def _optimizer(self, path: Path, optimizer: Optimizer) -> Take:
        names = self._parts.parameter_names(name_of(path), optimizer)
        if names is None:
            return self._stateful(path, optimizer)
        params = [param for group in optimizer.param_groups for param in group["params"]]
        by_name = dict(zip(names, params, strict=True))
        if self._index.tree.kind((*path, "param_groups")) != LIST:
            self._problems.append(f"{name_of(path)} is missing")
            return lambda: optimizer
        if problem := self._strangers(path, optimizer, names):
            self._problems.append(problem)
            return lambda: optimizer
        depth = len(path) + 1
        room = _Room(optimizer)

        def target(node: Node, info: TensorInfo) -> torch.Tensor | None:
            is_state = node.path[depth - 1] == "state" and len(node.path) > depth
            param = by_name.get(str(node.path[depth])) if is_state else None
            if param is None:
                return None
            keys = node.path[depth + 1 :]
            held = room.of(_at(optimizer.state.get(param), keys), node.name, info)
            return _fresh(param, keys, info) if held is None else held

        saved = self._subtree(path, target)
        numbers = {name: number for number, name in enumerate(names)}
        saved["state"] = {numbers[name]: values for name, values in saved["state"].items()}
        for group in saved["param_groups"]:
            group["params"] = [numbers[name] for name in group["params"]]

        def take() -> Any:
            optimizer.load_state_dict(saved)
            _undo_casts(optimizer, params, saved["state"])
            return optimizer

        return take

    def _strangers(self, path: Path, optimizer: Optimizer, names: list[str]) -> str:
        """Say which parameters only one of checkpoint and optimizer has; empty if none."""
        rest = iter(names)
        here = [[next(rest) for _ in group["params"]] for group in optimizer.param_groups]
        there = [
            self._subtree((*group.path, "params"))
            for group in self._index.tree.children((*path, "param_groups"))
        ]
        if here == there:
            return ""
        differing = sorted(
            {name for group in here for name in group} ^ {name for group in there for name in group}
        )
        what = f"differ in {', '.join(differing[:5])}" if differing else "are grouped otherwise"
        return f"the parameters of {name_of(path)} {what}"

    def _is_saved(self, path: Path) -> bool:
        name = name_of(path)
        is_leaf = name in self._index.tensors or name in self._index.objects
        return is_leaf or self._index.tree.kind(path) is not None

    def _subtree(self, path: Path, target: Target = lambda node, info: None) -> Any:
        """Return everything saved at *path*; its tensors are wished for, and not yet filled."""

        def leaf(node: Node) -> Any:
            info = self._index.tensors.get(node.name)
            if info is None:
                return self._read_object(node.name)
            tensor = target(node, info)
            if tensor is None:
                dtype = dtype_of(info.dtype)
                if dtype is None:
                    self._problems.append(f"{node.name} is {info.dtype}, which this torch has not")
                    return None
                tensor = torch.empty(info.shape, dtype=dtype, device="cpu")
            self._tensor(node.name, tensor)
            return tensor

        if self._index.tree.kind(path) is None:
            return leaf(Node(path, LEAF))  # saved under the same name by other containers
        return self._index.tree.build(path, leaf)


class _Room:
    """The tensors of an optimizer's state, each of which may be filled where it is, once."""

    def __init__(self, optimizer: Optimizer) -> None:
        params = [param for group in optimizer.param_groups for param in group["params"]]
        self._taken = {_address(param) for param in params}

    def of(self, held: object, name: str, info: TensorInfo) -> torch.Tensor | None:
        """Return *held* if it can take the tensor *name*, and is not another's memory."""
        if not isinstance(held, torch.Tensor) or check(name, info, held):
            return None
        if held.numel() and _address(held) in self._taken:
            return None
        self._taken.add(_address(held))
        return held


def _address(tensor: torch.Tensor) -> int:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).data_ptr()


def _at(values: Any, keys: Path) -> object:
    """Return what lies below *keys* in *values*; None if nothing does."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _fresh(param: torch.Tensor, keys: Path, info: TensorInfo) -> torch.Tensor | None:
    """Return room for what an optimizer keeps for *param*, where torch would move it in the end."""
    dtype = dtype_of(info.dtype)
    if dtype is None:
        return None
    if isinstance(param, DTensor) and tuple(param.shape) == info.shape:
        return torch.empty_like(param, dtype=dtype, requires_grad=False)
    device = "cpu" if keys[-1:] == ("step",) else param.device
    return torch.empty(info.shape, dtype=dtype, device=device)


def _undo_casts(
    optimizer: Optimizer, params: list[torch.Tensor], saved: Mapping[int, Mapping[str, Any]]
) -> None:
    """Give state back the dtype it was saved with, which torch makes the parameter's."""
    for number, values in saved.items():
        held = optimizer.state[params[number]]
        for key, value in values.items():
            now = held.get(key)
            if not (isinstance(value, torch.Tensor) and isinstance(now, torch.Tensor)):
                continue
            if now.dtype != value.dtype:
                held[key] = value.to(now.device)
