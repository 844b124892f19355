"""A user's state, taken apart into named leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ckptd.tensors.parts import ModuleNames, Parts, endless, is_stateful, named_state
from ckptd.tensors.tree import LEAF, LIST, Node, Path, PathItem, mapping_kind, name_of
from ckptd_proto import errors


@dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor or another value, with what is known about its copies on other ranks."""

    value: Any
    balanced: bool = False
    """All copies are equal by construction: any rank may write it, and a sample is compared."""
    still: bool = False
    """It is not expected to change from save to save."""
    compared: bool = True
    """Copies that differ are a mistake of the caller, and are compared whole."""


@dataclass(frozen=True, slots=True)
class Captured:
    """What a state consists of; tensors are still the user's own."""

    leaves: dict[str, Leaf]
    nodes: tuple[Node, ...]
    optimizers: tuple[Optimizer, ...]


_Role = Callable[[Any], Leaf]


def capture(state: Any) -> Captured:
    """Return the leaves of *state*, called as stock torch calls them.

    Raises `InvalidArgument` for keys that clash or that are neither str nor int.
    """
    if not isinstance(state, Mapping):
        text = f"the state is a {type(state).__name__}; give a dict from names to what is saved"
        raise errors.InvalidArgument(text)
    try:
        walk = _Walk(Parts(state))
        walk.visit((), state, Leaf)
    except RecursionError as error:
        raise endless(state) from error
    return Captured(walk.leaves, tuple(walk.nodes), tuple(walk.optimizers))


def key_item(path: Path, key: Any) -> PathItem:
    """Return *key* as part of a path; raises `InvalidArgument` if it could not come back."""
    if type(key) is str:
        return key
    if type(key) is int:
        return (key,)
    text = (
        f"{name_of(path) or 'the state'!r} has the key {key!r} of type {type(key).__name__}:"
        " keys that come back as they are must be str or int"
    )
    raise errors.InvalidArgument(text)


def is_terminal(value: list[Any]) -> bool:
    """Say whether a list is one value: torch takes apart only lists of tensors and mappings."""
    return not any(
        isinstance(item, torch.Tensor | Mapping)
        or is_stateful(item)
        or (isinstance(item, list) and not is_terminal(item))
        for item in value
    )


class _Walk:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.leaves: dict[str, Leaf] = {}
        self.nodes: list[Node] = []
        self.optimizers: list[Optimizer] = []

    def visit(self, path: Path, value: Any, role: _Role) -> None:
        if isinstance(value, nn.Module):
            self._visit_module(path, value)
        elif isinstance(value, Optimizer):
            self.optimizers.append(value)
            names = self._parts.parameter_names(name_of(path), value)
            self.visit(path, named_state(value, names), _role_of_optimizer)
        elif isinstance(value, Mapping):
            self._visit_mapping(path, value, role)
        elif isinstance(value, torch.Tensor):
            self._add_leaf(path, role(value))
        elif is_stateful(value):
            self.visit(path, value.state_dict(), role)
        elif isinstance(value, list) and not is_terminal(value):
            self.nodes.append(Node(path, LIST))
            for position, item in enumerate(value):
                self.visit((*path, position), item, role)
        else:
            self._add_leaf(path, role(value))

    def _visit_module(self, path: Path, module: nn.Module) -> None:
        state = module.state_dict()
        names = ModuleNames.of(module, state).by_key
        parameters = {storage_of(param): not param.requires_grad for param in module.parameters()}

        def role(value: Any) -> Leaf:
            if not isinstance(value, torch.Tensor):
                return Leaf(value)
            storage = storage_of(value)
            is_still = parameters.get(storage, False)
            return Leaf(value, balanced=storage in parameters, still=is_still, compared=False)

        self._visit_mapping(path, {names[key]: value for key, value in state.items()}, role)

    def _visit_mapping(self, path: Path, value: Mapping[Any, Any], role: _Role) -> None:
        kind = mapping_kind(value)
        if kind is None:
            text = (
                f"{name_of(path) or 'the state'!r} is a {type(value).__name__}, which would come"
                " back as a plain dict: save dict(...) of it"
            )
            raise errors.InvalidArgument(text)
        self.nodes.append(Node(path, kind))
        for key, item in value.items():
            self.visit((*path, key_item(path, key)), item, role)

    def _add_leaf(self, path: Path, leaf: Leaf) -> None:
        node = Node(path, LEAF)
        if node.name in self.leaves:
            text = f"two values of the state are both called {node.name!r}: rename one"
            raise errors.InvalidArgument(text)
        self.leaves[node.name] = leaf
        self.nodes.append(node)


def _role_of_optimizer(value: Any) -> Leaf:
    is_tensor = isinstance(value, torch.Tensor)
    return Leaf(value, balanced=is_tensor, compared=not is_tensor)


def storage_of(tensor: torch.Tensor) -> int:
    """Return what tells the memory of *tensor* from other tensors'."""
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return int(local.untyped_storage()._cdata)
