"""Saving from a real GPU; everything but CUDA itself is tried by `test_overlap` on any machine."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ckptd
from ckptd.tensors import cuda, streams
from ckptd_proto import errors
from fakes.daemon import Daemon

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

DONE_S = 60.0
A_WHILE_CYCLES = 4_000_000_000  # seconds, on any GPU


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def ckpt(daemon: Daemon, tmp_path: Path) -> Iterator[ckptd.Checkpointer]:
    place: dict[str, Any] = {"ranks": "self", "socket": daemon.socket}
    with ckptd.Checkpointer(tmp_path, experiment="e", run="r", **place) as one:
        yield one


def training(device: torch.device, *, fused: bool = False, normed: bool = False) -> dict[str, Any]:
    torch.manual_seed(1)
    layers = [nn.Linear(512, 512), *([nn.BatchNorm1d(512)] if normed else [])]
    model = nn.Sequential(*layers).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    state = {"model": model, "optimizer": optimizer}
    step(state)
    return state


def step(state: dict[str, Any]) -> None:
    device = state["model"][0].weight.device
    state["model"](torch.randn(8, 512, device=device)).square().sum().backward()
    state["optimizer"].step()


def values(state: dict[str, Any]) -> list[torch.Tensor]:
    kept = state["optimizer"].state_dict()["state"].values()
    held = [value for each in kept for value in each.values()]
    return [value.cpu().clone() for value in (*state["model"].state_dict().values(), *held)]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("normed", [False, True])
def test_a_step_right_behind_save_does_not_get_into_it(
    ckpt: ckptd.Checkpointer, device: torch.device, fused: bool, normed: bool
) -> None:
    state = training(device, fused=fused, normed=normed)
    ckpt.prepare(state)
    for number in range(1, 6):
        before = values(state)
        save = ckpt.save(state, step=number)
        for _ in range(3):
            step(state)
        save.result(DONE_S)
        target = training(device, fused=fused, normed=normed)
        ckpt.load(target, number)
        assert all(map(torch.equal, values(target), before))


def test_save_does_not_wait_for_the_device(ckpt: ckptd.Checkpointer, device: torch.device) -> None:
    state = training(device)
    ckpt.save(state, step=1).result(DONE_S)
    torch.cuda._sleep(A_WHILE_CYCLES)
    busy = torch.cuda.Event()
    busy.record()
    save = ckpt.save(state, step=2)
    step(state)
    assert not busy.query()
    assert not save.staged()
    save.result(DONE_S)
    assert save.copied_s > 0


def test_the_replay_of_a_graph_is_found(ckpt: ckptd.Checkpointer, device: torch.device) -> None:
    state = training(device)
    weight = state["model"][0].weight.detach()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        weight.add_(1)
    side = streams.of(device)
    assert side is not None
    side.run(lambda: torch.cuda._sleep(A_WHILE_CYCLES))
    save = ckpt.save(state, step=1)
    graph.replay()  # no step, so nothing has it wait
    with pytest.raises(errors.Aborted, match="overlap=False"):
        save.result(DONE_S)
    ckpt.save(state, step=1).result(DONE_S)


def test_registered_memory_is_pinned_until_it_is_given_up(device: torch.device) -> None:
    memory = torch.frombuffer(mmap.mmap(-1, 1 << 20), dtype=torch.uint8)
    stream = cuda.Stream(device)
    stream.register(memory.data_ptr(), memory.nbytes)
    assert memory.is_pinned()
    stream.unregister(memory.data_ptr())
    assert not memory.is_pinned()


def test_a_refusal_is_an_error_that_no_later_work_is_blamed_for(device: torch.device) -> None:
    memory = torch.frombuffer(mmap.mmap(-1, 1 << 20), dtype=torch.uint8)
    stream = cuda.Stream(device)
    stream.register(memory.data_ptr(), memory.nbytes)
    with pytest.raises(RuntimeError, match="cudaHostRegister"):
        stream.register(memory.data_ptr(), memory.nbytes)
    assert torch.ones(2, device=device).sum().item() == 2
    stream.unregister(memory.data_ptr())
    with pytest.raises(RuntimeError, match="cudaHostUnregister"):
        stream.unregister(memory.data_ptr())
    assert torch.ones(2, device=device).sum().item() == 2


def test_a_copy_across_the_bounds_of_registered_pieces_is_right(
    ckpt: ckptd.Checkpointer, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "PIECE_BYTES", 1 << 20)
    values = torch.randn(3 << 20, device=device)
    ckpt.save({"w": values}, step=1).result(DONE_S)
    target = {"w": torch.zeros_like(values)}
    ckpt.load(target)
    assert torch.equal(target["w"], values)
