from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

from ckptd.tensors import local
from ckptd.tensors.state import capture
from ckptd.tensors.tree import Tree
from ckptd.tensors.values import Encoder
from ckptd_proto import errors

LEAVES = st.integers() | st.builds(lambda: torch.zeros(1)) | st.tuples(st.integers())
STATES = st.dictionaries(
    st.text("abc", min_size=1, max_size=2),
    st.recursive(
        LEAVES,
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(st.text("xyz", min_size=1, max_size=2) | st.integers(0, 3), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)  # fmt: skip


@given(STATES)
def test_names_are_those_of_stock_torch_and_the_state_is_rebuilt_exactly(state: Any) -> None:
    names, paths = flatten_state_dict(state)
    captured = capture(state)
    assert {name: leaf.value for name, leaf in captured.leaves.items()}.keys() == names.keys()
    assert all(captured.leaves[name].value is value for name, value in names.items())
    rebuilt = Tree(captured.nodes).build((), lambda node: captured.leaves[node.name].value)
    assert rebuilt == state
    assert paths.keys() == names.keys()


def trained(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return optimizer


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own compiler
@pytest.mark.parametrize("wrap", [lambda m: m, torch.compile, nn.DataParallel])
def test_modules_and_optimizers_are_named_as_torch_names_them(wrap: Any) -> None:
    inner = small()
    optimizer = trained(inner)
    model = wrap(inner)
    theirs = {
        "model": get_model_state_dict(inner),
        "opt": get_optimizer_state_dict(inner, optimizer),
    }
    names, _ = flatten_state_dict(theirs)
    assert capture({"model": model, "opt": optimizer}).leaves.keys() == names.keys()


def test_taking_a_fresh_optimizer_leaves_it_fresh() -> None:
    model = small()
    optimizer = torch.optim.AdamW(model.parameters())
    local.take({"model": model, "opt": optimizer}, Encoder())
    assert not optimizer.state
    assert all(param.grad is None for param in model.parameters())


def test_an_optimizer_over_two_modules_names_each_parameters_module() -> None:
    state = {"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}
    params = [param for module in state.values() for param in module.parameters()]
    captured = capture({**state, "opt": torch.optim.SGD(params)})
    assert captured.leaves["opt.param_groups.0.params"].value == [
        "a.weight",
        "a.bias",
        "b.weight",
        "b.bias",
    ]


def test_an_optimizer_whose_modules_are_partly_missing_is_refused() -> None:
    model, loss = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()])
    with pytest.raises(errors.InvalidArgument, match=r"2 of the 4 .* 'opt' .* add the module"):
        capture({"model": model, "opt": optimizer})


def test_only_parameters_and_optimizer_state_may_be_written_by_any_rank() -> None:
    model = small()
    leaves = capture({"m": model, "o": trained(model), "t": torch.ones(1)}).leaves
    assert leaves["m.0.weight"].balanced
    assert leaves["o.state.0.weight.exp_avg"].balanced
    assert not leaves["m.1.running_mean"].balanced
    assert not leaves["t"].balanced


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"a": {"b": 1}, "a.b": 2}, "'a.b'"),
        ({"a": {(1, 2): 3}}, r"'a' has the key \(1, 2\)"),
        ({"a": {True: 3}}, "key True"),
        ({"a": defaultdict(list, x=[1])}, "defaultdict"),
        ({"s": torch.ones(2).to_sparse()}, "'s' .* sparse"),
        ({"m": torch.empty(2, device="meta")}, "'m' .* meta"),
        ([1], "list"),
    ],
)  # fmt: skip
def test_a_state_that_could_not_come_back_is_refused(state: Any, said: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=said):
        local.take(state, Encoder())


def test_ordered_dicts_and_int_keys_come_back_as_such() -> None:
    state = {"o": OrderedDict(b=1, a={3: torch.ones(1), "3x": 2})}
    captured = capture(state)
    rebuilt = Tree(captured.nodes).build((), lambda node: captured.leaves[node.name].value)
    assert type(rebuilt["o"]) is OrderedDict
    assert list(rebuilt["o"]) == ["b", "a"]
    assert list(rebuilt["o"]["a"]) == [3, "3x"]


def test_modules_inside_lists_and_dicts_are_taken_apart() -> None:
    state = {"parts": [nn.Linear(1, 1), {"deep": nn.Linear(1, 1)}]}
    assert capture(state).leaves.keys() == {
        "parts.0.weight", "parts.0.bias", "parts.1.deep.weight", "parts.1.deep.bias",
    }  # fmt: skip


def test_a_state_is_not_changed_by_taking_it() -> None:
    model = small()
    state = {"model": model, "opt": trained(model), "x": [1, {"y": (2,)}]}
    before = copy.deepcopy(state["x"])
    local.take(state, Encoder())
    assert state["x"] == before
