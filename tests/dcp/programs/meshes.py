"""Ranks that load what ranks in another number have saved, and save for the next."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import states
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import ckptd

warnings.filterwarnings("ignore", category=FutureWarning)
run, before = Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


def state_of(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    mine = {"dataloader": {"position": rank}, "weights": torch.full((rank + 1,), float(rank))}
    return {"tensors": states.held(tensors), "plain": states.OBJECTS, f"only.{rank}": mine}


def template() -> dict[str, Any]:
    tensors = {name: torch.zeros_like(each) for name, each in states.whole().items()}
    state = state_of(tensors)
    state["plain"] = dict.fromkeys(states.OBJECTS)
    state["plain"]["schedule"] = {"milestones": None, "last": None}
    state[f"only.{rank}"] = {"dataloader": {"position": None}, "weights": torch.zeros(rank + 1)}
    return state


def check_loads(path: Path, *, has_own: bool = True) -> None:
    expected = state_of(states.whole())
    for reader in (ckptd.dcp.StorageReader(path), dcp.FileSystemReader(path)):
        found = template()
        if not has_own:
            del found[f"only.{rank}"]
        dcp.load(found, storage_reader=reader)
        states.check_same(found["tensors"], expected["tensors"])
        assert found["plain"] == states.OBJECTS
        if has_own:
            states.check_same(found[f"only.{rank}"], expected[f"only.{rank}"])


def check_saves() -> None:
    state = state_of(states.whole())
    dcp.save(state, storage_writer=ckptd.dcp.StorageWriter(run / "step-1"))
    check_loads(run / "step-1")
    pending = ckptd.dcp.async_save(state, checkpoint_id=run / "step-2")
    for value in state["tensors"].values():
        states.local(value).zero_()  # the training goes on
    assert "tensors.rows" in pending.result(60).state_dict_metadata
    check_loads(run / "step-2")
    state = state_of(states.whole())
    writer = ckptd.dcp.StorageWriter(run / "step-3")
    future = dcp.async_save(state, storage_writer=writer)
    for value in state["tensors"].values():
        states.local(value).zero_()
    assert "tensors.rows" in future.result().state_dict_metadata
    check_loads(run / "step-3")


def network() -> nn.Module:
    torch.manual_seed(1)
    # 5 and 3 rows do not divide by two or four, and one row leaves ranks with nothing
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3), nn.Linear(3, 1))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).relu())


def data_parallel() -> nn.Module:
    return DistributedDataParallel(network())


def fully_sharded() -> nn.Module:
    net = network()
    for layer in net:
        fully_shard(layer)
    return fully_shard(net)


def hybrid_sharded() -> nn.Module:
    net = network()
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("copies", "shards"))
    for layer in net:
        fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def tensor_parallel() -> nn.Module:
    torch.manual_seed(2)
    return split(Block(), init_device_mesh("cpu", (world,)))


def two_dimensional() -> nn.Module:
    torch.manual_seed(2)
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("data", "tensor"))
    return fully_shard(split(Block(), mesh["tensor"]), mesh=mesh["data"])


def split(net: nn.Module, mesh: Any) -> nn.Module:
    return parallelize_module(net, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def check_model(kind: Any) -> None:
    """Train, save, go on, come back: every parameter and moment is as it was."""
    net = kind()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    inputs = torch.ones(2, 8 if kind in (tensor_parallel, two_dimensional) else 4)

    def train() -> None:
        net(inputs + torch.arange(2.0)[:, None]).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    def state() -> dict[str, Any]:
        model_state, optimizer_state = get_state_dict(net, optimizer)
        return {"model": model_state, "optimizer": optimizer_state}

    train()
    path = run.with_name(f"{run.name}-{kind.__name__}") / "step-0"
    ckptd.dcp.async_save(state(), checkpoint_id=path).result(60)
    kept = {name: states.local(v).clone() for name, v in state()["model"].items()}
    moments = state()["optimizer"]["state"]
    kept_moments = {n: states.local(v["exp_avg"]).clone() for n, v in moments.items()}
    whole = {"model": full(state()["model"]), "optimizer": {"state": full(moments)}}
    if rank == 0:
        torch.save(whole, path.with_name("whole.pt"))  # for who reads it alone
    train()
    loaded = state()
    dcp.load(loaded, storage_reader=ckptd.dcp.StorageReader(path))
    set_state_dict(
        net,
        optimizer,
        model_state_dict=loaded["model"],
        optim_state_dict=loaded["optimizer"],
    )
    states.check_same(state()["model"], kept)
    moments = state()["optimizer"]["state"]
    states.check_same({n: v["exp_avg"] for n, v in moments.items()}, kept_moments)


def full(values: Any) -> Any:
    """Return it with whole tensors."""
    if isinstance(values, dict):
        return {name: full(value) for name, value in values.items()}
    return values.full_tensor() if isinstance(values, DTensor) else values


def check_balance() -> None:
    """Replicas are written once, by those who have less of their own: what torch counts is wrong."""
    torch.manual_seed(3)
    line = init_device_mesh("cpu", (world,))
    state: dict[str, Any] = {f"w{number}": torch.randn(100, 200) for number in range(4)}
    state["row"] = states.shard(torch.randn(1, 80_000), line, (Shard(0),))  # is all rank 0's
    path = run.with_name(f"{run.name}-balance") / "step-0"
    dcp.save(state, storage_writer=ckptd.dcp.StorageWriter(path))
    sizes = [each.stat().st_size for each in path.glob("*.distcp")]
    assert len(sizes) == world
    assert max(sizes) < 4 * 80_000 + 4000, sizes


def check_frozen() -> None:
    """Shards of what is not trained are on the disk once, whoever saves them."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(300, 300).requires_grad_(False), nn.Linear(300, 2))
    for layer in net:
        fully_shard(layer)
    fully_shard(net)
    place = run.with_name(f"{run.name}-frozen")
    frozen = [each for each in net.parameters() if not each.requires_grad]
    for step in (0, 1):
        with torch.no_grad():
            net[1].weight.add_(1)
        path = place / f"step-{step}"
        writer = ckptd.dcp.StorageWriter(path, frozen=frozen)
        dcp.save(net.state_dict(), storage_writer=writer)
        found = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
        dcp.load(found, checkpoint_id=path)
        states.check_same(found, net.state_dict())
    with ckptd.Checkpointer(place.parent.parent, experiment="e", run=place.name) as ckpt:
        ckpt.save({"net": net}, step=2).result(60)
        ckpt.save({"net": net}, step=3).result(60)
    still = f"__{rank}_1.distcp"
    inodes = [(place / f"step-{step}" / still).stat().st_ino for step in range(4)]
    assert len(set(inodes)) == 1, inodes


def check_warning() -> None:
    """Small things that differ are rank 0's, as with torch, which does not say so."""
    path = run.with_name(f"{run.name}-differs") / "step-0"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        state = {"seed": rank, "buffer": torch.full((3,), float(rank)), "same": 1}
        ckptd.dcp.async_save(state, checkpoint_id=path).result(60)
    said = sorted(str(each.message).partition(":")[0] for each in told)
    words = "differs between rank 0 and rank 1" if world == 2 else "differs between rank 0 and"
    assert [words in each for each in said] == ([True, True] if rank == 0 else []), said
    found = {"seed": None, "buffer": torch.ones(3), "same": None}
    dcp.load(found, storage_reader=ckptd.dcp.StorageReader(path))
    assert found["seed"] == 0
    assert not found["buffer"].any()


def check_refusal() -> None:
    """What one rank cannot save, none does, and every rank is told whose it is."""
    state = {f"of.{rank}": print if rank == 1 else 1}
    path = run / "step-100"
    differing = {"big": torch.full((30_000,), float(rank))}
    try:
        ckptd.dcp.async_save(differing, checkpoint_id=path)
    except ckptd.errors.InvalidArgument as error:
        assert "'big' differs between rank 0 and rank 1" in str(error), error
    else:
        raise AssertionError("one rank's was saved for all")
    for save in (
        lambda: dcp.save(state, storage_writer=ckptd.dcp.StorageWriter(path)),
        lambda: ckptd.dcp.async_save(state, checkpoint_id=path),
    ):
        try:
            save()
        except (CheckpointException, ckptd.errors.InvalidArgument) as error:
            assert "of.1" in str(error), error
        else:
            raise AssertionError("it was saved")
    assert not path.exists()


def check_groups() -> None:
    """Some of the ranks, or each for itself, save what is theirs."""
    alone = run.with_name(f"{run.name}-of-{rank}")
    dcp.save({"w": rank}, storage_writer=ckptd.dcp.StorageWriter(alone / "step-0"), no_dist=True)
    ckptd.dcp.async_save({"w": rank}, checkpoint_id=alone / "step-1", no_dist=True).result(60)
    last = [world - 2, world - 1]
    group = dist.new_group(last)
    if rank in last:
        some = run.with_name(f"{run.name}-some")
        state = {"all": torch.arange(5.0), f"of.{rank}": rank}
        writer = ckptd.dcp.StorageWriter(some / "step-0")
        dcp.save(state, storage_writer=writer, process_group=group)
        pending = ckptd.dcp.async_save(state, checkpoint_id=some / "step-1", process_group=group)
        assert set(pending.result(60).state_dict_metadata) == {"all", *(f"of.{r}" for r in last)}
        found = {"all": torch.zeros(5), f"of.{rank}": None}
        reader = ckptd.dcp.StorageReader(some / "step-0")
        dcp.load(found, storage_reader=reader, process_group=group)
        assert found[f"of.{rank}"] == rank
    dist.barrier()


if before is not None:
    check_loads(before / "step-1", has_own=False)
    check_loads(before / "step-2", has_own=False)
check_saves()
check_balance()
check_frozen()
check_warning()
check_refusal()
check_groups()
for kind in (data_parallel, fully_sharded, hybrid_sharded, tensor_parallel, two_dimensional):
    check_model(kind)
dist.barrier()
dist.destroy_process_group()
