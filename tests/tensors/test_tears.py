"""A state that changes while it is copied is no checkpoint."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import ckptd
from ckptd.tensors import samples, stage
from ckptd.tensors.samples import Glance, Moment
from ckptd_proto import errors
from fakes.daemon import Daemon

MIB = 1 << 20


@settings(deadline=None)
@given(
    st.sampled_from([torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.complex128]),
    st.integers(1, 5_000),
    st.integers(1, 4),
)
def test_a_tensor_whose_elements_all_change_is_seen_to(
    dtype: torch.dtype, rows: int, columns: int
) -> None:
    tensor = torch.ones(columns, rows + 100, dtype=dtype).t()[:rows]
    moment = Moment([("before", torch.zeros(MIB)), ("w", tensor)])
    assert moment.changed() is None
    looked_at = len(moment) - 4
    tensor.mul_(0)
    assert moment.changed() == ("w" if looked_at else None)
    assert looked_at > 0 or tensor.numel() * tensor.itemsize < 64 << 10


def test_what_is_looked_at_lies_in_the_tensor_and_is_little() -> None:
    memory = torch.zeros(8 * MIB, dtype=torch.uint8)
    parts = [memory[start : start + MIB] for start in range(0, 8 * MIB, 2 * MIB)]
    moment = Moment([(f"part {number}", part) for number, part in enumerate(parts)])
    for start in range(MIB, 8 * MIB, 2 * MIB):
        memory[start : start + MIB] = 1  # between the parts
    assert moment.changed() is None
    assert len(moment) == len(parts)


def test_of_many_small_tensors_a_few_are_looked_at() -> None:
    tensors = [(f"w{number}", torch.zeros(1024)) for number in range(2000)]
    moment = Moment(tensors)
    assert 6 <= len(moment) <= 9
    for _, tensor in tensors:
        tensor.fill_(1)
    assert moment.changed() is not None


def test_looking_takes_none_of_the_trainings_random_numbers() -> None:
    before = random.getstate(), torch.get_rng_state()
    Moment([("w", torch.zeros(MIB))]).changed()
    Glance([("w", torch.zeros(MIB))]).look_again()
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_an_empty_tensor_has_nothing_to_look_at() -> None:
    assert len(Moment([("w", torch.zeros(0))])) == 0


@pytest.fixture
def meddled(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Has another thread do something when the first tensor has been copied."""

    def meddle(act: Callable[[], object]) -> None:
        copy, once = stage._copy, iter([act])

        def copy_and_act(memory: memoryview, source: torch.Tensor) -> None:
            copy(memory, source)
            if (left := next(once, None)) is not None:
                thread = threading.Thread(target=left)
                thread.start()
                thread.join()

        monkeypatch.setattr(stage, "_copy", copy_and_act)

    return meddle


@pytest.mark.parametrize("is_copied_already", [True, False])
def test_a_save_beside_which_a_tensor_changes_fails_and_names_it(
    daemon: Daemon, tmp_path: Path, meddled: Any, is_copied_already: bool
) -> None:
    state = {"first": torch.zeros(MIB), "second": torch.zeros(MIB)}
    name = "first" if is_copied_already else "second"
    place = {"experiment": "e", "run": "r", "socket": daemon.socket}
    with ckptd.Checkpointer(tmp_path, **place, ranks="self") as checkpoints:
        meddled(lambda: state[name].add_(1))
        with pytest.raises(
            errors.Aborted, match=f"the tensor '{name}' changed while it was copied"
        ):
            checkpoints.save(state, step=1)
        assert checkpoints.latest() is None
        checkpoints.save(state, step=1).result(timeout=30)  # undisturbed it is fine


def test_an_optimizer_step_beside_the_copy_is_found(
    daemon: Daemon, tmp_path: Path, meddled: Any
) -> None:
    model = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.randn(4, 512)).square().mean().backward()
    optimizer.step()
    place = {"experiment": "e", "run": "r", "socket": daemon.socket}
    with ckptd.Checkpointer(tmp_path, **place, ranks="self") as checkpoints:
        meddled(optimizer.step)
        with pytest.raises(errors.Aborted, match=r"tensor '(model|optimizer)\."):
            checkpoints.save({"model": model, "optimizer": optimizer}, step=1)


def test_the_part_of_a_dtensor_is_looked_at_where_it_lies(
    daemon: Daemon, tmp_path: Path, meddled: Any
) -> None:
    place = f"file://{tmp_path}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=place, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        sharded = DTensor.from_local(torch.zeros(MIB), mesh, [Shard(0)])
        named = {"experiment": "e", "run": "r", "socket": daemon.socket}
        with ckptd.Checkpointer(tmp_path / "root", **named) as checkpoints:
            meddled(lambda: sharded.to_local().fill_(1))
            with pytest.raises(errors.Aborted, match="the tensor 'w' changed"):
                checkpoints.save({"w": sharded}, step=1)
    finally:
        torch.distributed.destroy_process_group()


def test_a_sample_of_replicas_is_what_it_was() -> None:
    assert samples.sample(torch.tensor([1, 2, 3], dtype=torch.uint8)) == "1.2.3"
