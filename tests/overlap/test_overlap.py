"""What optimizers own on a device is copied beside the training: a thread plays the device."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import optimizer as torch_optimizer

import ckptd
from ckptd.tensors import streams
from fakes.daemon import Daemon
from fakes.streams import ThreadStream
from fakes.training import backward, opened, same, saved, step, training, values
from fakes.waiting import eventually, is_somebody_in

DONE_S = 60.0

pytestmark = pytest.mark.timeout(300)


def test_save_returns_before_what_an_optimizer_owns_is_copied(
    ckpt: ckptd.Checkpointer, stream: ThreadStream, daemon: Daemon, tmp_path: Path
) -> None:
    state = training()
    before = values(state)
    stream.hold(after=1)
    save = ckpt.save(state, step=1)
    assert not save.staged()
    assert ckpt.latest() is None
    stream.release()
    assert save.result(DONE_S).step == 1
    assert save.record is not None
    assert save.record.copied_s > 0
    assert same(saved(daemon, tmp_path), before)


def test_the_optimizers_step_comes_after_the_copy(
    ckpt: ckptd.Checkpointer, stream: ThreadStream, daemon: Daemon, tmp_path: Path, beside: Any
) -> None:
    state = training()
    before = values(state)
    stream.hold(after=1)
    save = ckpt.save(state, step=1)
    backward(state)
    stepped = beside(state["optimizer"].step)
    assert stream.joined.wait(DONE_S)
    assert not stepped.done()
    assert torch.equal(state["model"][0].weight, before["model.0.weight"])
    stream.release()
    stepped.result(DONE_S)
    assert not torch.equal(state["model"][0].weight, before["model.0.weight"])
    save.result(DONE_S)
    assert same(saved(daemon, tmp_path), before)


def test_so_does_the_step_of_an_optimizer_that_is_not_saved(
    ckpt: ckptd.Checkpointer, stream: ThreadStream, daemon: Daemon, tmp_path: Path, beside: Any
) -> None:
    state = training()
    before = values(state)
    other = torch.optim.SGD(state["model"].parameters(), lr=1.0)
    stream.hold(after=1)
    save = ckpt.save(state, step=1)
    stepped = beside(other.step)
    assert stream.joined.wait(DONE_S)
    stream.release()
    stepped.result(DONE_S)
    save.result(DONE_S)
    assert same(saved(daemon, tmp_path), before)


def test_what_no_optimizer_owns_is_copied_before_save_returns(
    ckpt: ckptd.Checkpointer, stream: ThreadStream
) -> None:
    state = training()
    average = state["model"][0].weight.detach().clone()
    grad = state["model"][0].weight.grad
    assert grad is not None
    given = {**state, "average": average, "grad": grad, "view": state["model"][0].weight[:5]}
    kept = {name: given[name].detach().clone() for name in ("average", "grad")}
    mean = state["model"][1].running_mean.clone()
    stream.hold(after=1)
    save = ckpt.save(given, step=1)
    state["model"](torch.randn(8, 64))  # moves BatchNorm's buffers
    average.zero_()
    grad.zero_()
    stream.release()
    save.result(DONE_S)
    target = {**training(), "average": torch.zeros(64, 64), "grad": torch.zeros(64, 64)}
    ckpt.load(target)
    assert torch.equal(target["model"][1].running_mean, mean)
    assert not torch.equal(state["model"][1].running_mean, mean)
    assert all(torch.equal(target[name], kept[name]) for name in kept)


def test_what_only_shares_its_storage_with_a_parameter_is_nobodys(
    ckpt: ckptd.Checkpointer, stream: ThreadStream
) -> None:
    flat = torch.ones(200)
    weight, other = nn.Parameter(flat[:100]), flat[100:]
    state = {"w": weight, "optimizer": torch.optim.SGD([weight]), "other": other}
    stream.hold(after=1)
    save = ckpt.save(state, step=1)
    assert stream.works == 2  # of its own, and waited for
    other.zero_()
    stream.release()
    save.result(DONE_S)
    ckpt.load(state)
    assert other.all()


def test_save_waits_for_the_copy_of_what_no_optimizer_owns(
    ckpt: ckptd.Checkpointer, stream: ThreadStream, beside: Any
) -> None:
    state = training()
    stream.hold()
    save = beside(lambda: ckpt.save(state, step=1))
    assert stream.awaited.wait(DONE_S)
    assert is_somebody_in("_stage")
    stream.release()
    save.result(DONE_S).result(DONE_S)


class Wrapping(torch.optim.Optimizer):
    """As some frameworks have it: steps another optimizer, and calls no hooks itself."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        self.state, self.param_groups = inner.state, inner.param_groups

    def state_dict(self) -> Any:
        return self.inner.state_dict()

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


def in_backward(state: dict[str, Any]) -> None:
    with warnings.catch_warnings(action="ignore"):  # torch warns of itself
        from torch.distributed.optim import _apply_optimizer_in_backward
    _apply_optimizer_in_backward(torch.optim.SGD, state["model"].parameters(), {"lr": 0.1})


def in_backward_by_hooks(state: dict[str, Any]) -> None:
    for param in state["model"].parameters():
        param.register_post_accumulate_grad_hook(lambda _: state["optimizer"].step())


def without(state: dict[str, Any]) -> None:
    del state["optimizer"]


def wrapped(state: dict[str, Any]) -> None:
    state["optimizer"] = Wrapping(state["optimizer"])


@pytest.mark.parametrize("how", [without, in_backward, in_backward_by_hooks, wrapped])
def test_without_a_step_to_wait_everything_is_copied_before_save_returns(
    ckpt: ckptd.Checkpointer, stream: ThreadStream, how: Callable[[dict[str, Any]], None]
) -> None:
    state = training()
    how(state)
    stream.hold(after=1)
    ckpt.save(state, step=1).result(DONE_S)
    assert stream.works == 1


def test_without_overlap_everything_is_copied_before_save_returns(
    daemon: Daemon, tmp_path: Path, stream: ThreadStream
) -> None:
    with opened(daemon, tmp_path, overlap=False) as ckpt:
        stream.hold(after=1)
        ckpt.save(training(), step=1).result(DONE_S)
        assert stream.works == 1


@pytest.mark.parametrize(
    ("how", "where"),
    [
        ("save", "wait_sealed"),
        ("prepare", "wait_sealed"),
        ("close", "wait_saved"),
        ("load", "wait_saved"),
    ],
)
def test_what_comes_next_waits_until_the_copy_is_sealed(
    daemon: Daemon, tmp_path: Path, stream: ThreadStream, beside: Any, how: str, where: str
) -> None:
    state, target = training(), training()
    before = values(state)
    ckpt = opened(daemon, tmp_path)
    stream.hold(after=1)
    first = ckpt.save(state, step=1)
    then: dict[str, Callable[[], object]] = {
        "save": lambda: ckpt.save(state, step=2),
        "prepare": lambda: ckpt.prepare(state),
        "close": ckpt.close,
        "load": lambda: ckpt.load(target),
    }
    called = beside(then[how])
    eventually(lambda: is_somebody_in(where), timeout_s=DONE_S)
    assert not called.done()
    stream.release()
    called.result(DONE_S)
    assert first.result(DONE_S).step == 1
    ckpt.close()
    assert how != "load" or same(values(target), before)


def test_saves_one_after_another_each_have_their_own_moment(
    ckpt: ckptd.Checkpointer, stream: ThreadStream
) -> None:
    state = training()
    moments = {}
    for number in range(1, 5):
        step(state)
        moments[number] = values(state)
        ckpt.save(state, step=number)
    for number, moment in moments.items():
        ckpt.load(state, number)
        assert same(values(state), moment)


def test_optimizers_are_left_alone_once_it_is_closed(
    daemon: Daemon, tmp_path: Path, stream: ThreadStream
) -> None:
    before = dict(torch_optimizer._global_optimizer_pre_hooks)
    with opened(daemon, tmp_path) as ckpt:
        ckpt.save(training(), step=1)
        assert len(torch_optimizer._global_optimizer_pre_hooks) == len(before) + 1
        ckpt.save(training(), step=2)
        assert len(torch_optimizer._global_optimizer_pre_hooks) == len(before) + 1
    assert dict(torch_optimizer._global_optimizer_pre_hooks) == before


def test_the_memory_that_is_copied_to_is_known_to_the_device_until_it_is_unmapped(
    daemon: Daemon, tmp_path: Path, stream: ThreadStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "PIECE_BYTES", 1 << 60)  # a slot is one piece, wherever it lies
    state = training()
    with opened(daemon, tmp_path) as ckpt:
        ckpt.prepare(state)
        for number in range(1, 4):
            ckpt.save(state, step=number)
        assert len(stream.registered) == 2
        for number in range(4, 10):  # each needs another slot, and older ones are let go of
            ckpt.save(state | {"much": torch.zeros(number << 20)}, step=number).result(DONE_S)
        assert 2 <= len(stream.registered) <= 4
    assert not stream.registered


def test_shards_are_their_optimizers_as_whole_tensors_are(
    daemon: Daemon, tmp_path: Path, stream: ThreadStream
) -> None:
    place = f"file://{tmp_path}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=place, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = fully_shard(nn.Linear(64, 64), mesh=mesh)
        state = {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}
        step(state)
        with ckptd.Checkpointer(
            tmp_path / "root", experiment="e", run="r", socket=daemon.socket
        ) as ckpt:
            stream.hold()
            save = ckpt.save(state, step=1)
            assert stream.works == 1
            assert not save.staged()
            stream.release()
            save.result(DONE_S)
    finally:
        torch.distributed.destroy_process_group()


def test_by_torchs_own_calls_everything_is_copied_before_they_return(
    daemon: Daemon, tmp_path: Path, stream: ThreadStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKPTD_SOCKET", str(daemon.socket))
    state = training()
    stream.hold(after=1)
    plain = {"model": state["model"].state_dict(), "optimizer": state["optimizer"].state_dict()}
    ckptd.dcp.async_save(plain, checkpoint_id=tmp_path / "e" / "r" / "step-1").result(DONE_S)
    assert stream.works == 1
