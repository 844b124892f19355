"""What several ranks hold is written once, so it must be equal; a sample tells."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ckptd.tensors import local, plan, samples
from ckptd.tensors.plan import GlobalPlan
from ckptd.tensors.values import Encoder
from ckptd_proto import errors


def agreed(*states: Any) -> GlobalPlan:
    return plan.agree([local.take(state, Encoder()).plan for state in states])


def filled(value: float) -> nn.Module:
    module = nn.Linear(2, 2)
    for param in module.parameters():
        nn.init.constant_(param, value)
    return module


def test_modules_that_differ_between_ranks_are_refused_by_name_and_ranks() -> None:
    said = "'net.weight' differs between ranks 0, 2 and rank 1, .* 'net.weight.2'.* Distributed"
    with pytest.raises(errors.InvalidArgument, match=said):
        agreed({"net": filled(1)}, {"net": filled(2)}, {"net": filled(1)})


def test_optimizer_state_that_differs_between_ranks_is_refused() -> None:
    states = []
    for gradient in (1.0, 2.0):
        module = filled(1)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.0)
        for param in module.parameters():
            param.grad = torch.full_like(param, gradient)
        optimizer.step()
        states.append({"net": module, "opt": optimizer})
    with pytest.raises(errors.InvalidArgument, match=r"'opt.state.weight.exp_avg' differs"):
        agreed(*states)


@pytest.mark.parametrize(
    "make",
    [
        lambda rank: {"net": filled(float("nan"))},
        lambda rank: {"net": filled(1).to(memory_format=torch.contiguous_format)},
        lambda rank: {"net": nn.ParameterList([torch.arange(12.0).reshape(3, 4)])},
        lambda rank: {"net": nn.ParameterList([torch.zeros(0, 3), torch.tensor(1.5)])},
        lambda rank: {"opt": {f"of rank {rank}": torch.full((2,), rank)}},
        lambda rank: {"net": {f"layer {rank}": filled(rank)}},
    ],
    ids=["nan", "layout", "list", "empty", "own keys", "own layers"],
)
def test_what_ranks_may_hold_is_not_refused(make: Any) -> None:
    agreed(make(0), make(1))


def test_buffers_may_differ_between_ranks() -> None:
    first, second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    second.running_mean += 1
    agreed({"net": first}, {"net": second})


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.complex128, torch.float8_e5m2, torch.bool]
)
def test_a_sample_tells_values_apart_whatever_their_layout(dtype: torch.dtype) -> None:
    plain = torch.randint(0, 2, (5, 6, 7)).to(dtype)
    turned = plain.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    other = plain.clone()
    other[-1, -1, -1] = 1 - int(other[-1, -1, -1].real.item())
    assert turned.stride() != plain.stride()
    assert samples.sample(turned) == samples.sample(plain) != samples.sample(other)


def test_a_sample_of_a_view_with_lazy_bits_is_that_of_its_values() -> None:
    turned = torch.tensor([1 + 2j, 3 - 4j]).conj()
    for lazy in (turned, turned.imag):
        assert samples.sample(lazy) == samples.sample(lazy.resolve_conj().resolve_neg().clone())
