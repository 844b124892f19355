"""Two ranks: data-parallel and fully sharded models, saved, loaded, and refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import ckptd
from ckptd import errors

root, expected = Path(sys.argv[1]), Path(sys.argv[2])


def model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    # 5 and 3 rows do not divide by two, and one row leaves the second rank nothing
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 1))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    net(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def full(net: nn.Module) -> dict[str, Any]:
    return get_model_state_dict(net, options=StateDictOptions(full_state_dict=True))


def local(value: Any) -> torch.Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def check_data_parallel(rank: int) -> None:
    torch.manual_seed(0)
    net = DistributedDataParallel(nn.Sequential(nn.Linear(4, 300), nn.BatchNorm1d(300)))
    optimizer = torch.optim.AdamW(net.parameters())
    torch.manual_seed(rank)
    net(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    net.module[1].running_mean.fill_(rank + 1)  # as when buffers are not broadcast
    with ckptd.Checkpointer(root, experiment="e", run="ddp") as ckpt:
        rng = torch.get_rng_state()
        state = {"model": net, "optimizer": optimizer, "step": 1, f"rng.{rank}": rng}
        ckpt.prepare(state)
        save = ckpt.save(state, step=1, metrics={"loss": 0.5})
        saved = save.result(60)
        assert save.staged()
        once = 3 * sum(param.nbytes for param in net.parameters()) + 2 * rng.nbytes
        assert once < saved.size_bytes < once + 40_000, (once, saved.size_bytes)
        images = sorted(path.stat().st_size for path in saved.path.glob("*.distcp"))
        assert len(images) == 2 and images[0] > once / 4, images
        net.module[1].running_mean.zero_()
        ckpt.load({"model": net})
        assert torch.equal(net.module[1].running_mean, torch.ones(300))  # rank 0's, on both


def check_sharded(rank: int) -> None:
    net = model(1)
    for layer in net:
        fully_shard(layer)
    fully_shard(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with ckptd.Checkpointer(root, experiment="e", run="alone") as ckpt:
        loaded = ckpt.load({"model": net, "optimizer": optimizer, "scheduler": scheduler})
    assert loaded.step == 3
    alone = torch.load(expected / "alone.pt")
    assert all(torch.equal(alone[name], value) for name, value in full(net).items())
    train(net, optimizer, 2)
    scheduler.step()
    continued = torch.load(expected / "continued.pt")
    for name, value in full(net).items():  # sums in another order, so not bit for bit
        torch.testing.assert_close(value, continued[name])
    shards = {name: local(value).clone() for name, value in net.state_dict().items()}
    moments = [local(values["exp_avg"]).clone() for values in optimizer.state.values()]
    weights = full(net)
    if rank == 0:
        torch.save(weights, expected / "sharded.pt")
    with ckptd.Checkpointer(root, experiment="e", run="sharded") as ckpt:
        state = {"model": net, "optimizer": optimizer, "scheduler": scheduler}
        ckpt.save(state, step=4).result(60)
        train(net, optimizer, 3)
        ckpt.load(state, 4)
    assert all(torch.equal(local(v), shards[n]) for n, v in net.state_dict().items())
    held = [local(values["exp_avg"]) for values in optimizer.state.values()]
    assert all(map(torch.equal, held, moments))


@contextmanager
def refused(kind: type[Exception], *words: str) -> Iterator[None]:
    try:
        yield
    except kind as error:
        assert type(error) is kind, repr(error)
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError(f"no {kind.__name__}")


def check_refusals(rank: int) -> None:
    with ckptd.Checkpointer(root, experiment="e", run="refused") as ckpt:
        with refused(errors.InvalidArgument, "disagree on the step", "7 on rank 0", "8 on rank 1"):
            ckpt.save({"x": 1}, step=7 + rank)
        with refused(
            errors.InvalidArgument, "'seed' differs between rank 0 and rank 1", "'seed.1'"
        ):
            ckpt.save({"seed": rank}, step=7)
        with refused(errors.InvalidArgument, "'hook'", "rank 1" if rank == 0 else ""):
            ckpt.save({"hook": print if rank == 1 else 1}, step=7)
        with refused(errors.Aborted if rank == 0 else ZeroDivisionError, "division"):
            ckpt.save(Broken() if rank == 1 else {"x": 1}, step=7)
        assert ckpt.latest() is None
        assert ckpt.save({"x": 1}, step=7).result(60).step == 7
        assert ckpt.save({"x": 1}, step=8).result(60).step == 8
        with refused(errors.InvalidArgument, "'x' differs"):  # the plan is the same as before
            ckpt.save({"x": rank}, step=9)
        with refused(errors.NotFound, "no committed step 9", "7, 8"):
            ckpt.load({"x": 0}, 9)
        with refused(errors.InvalidArgument, "y is missing"):
            ckpt.load({"y": 0} if rank == 1 else {"x": 0}, 8)


class Broken(dict[str, Any]):
    """A state whose own code fails."""

    def items(self) -> Any:
        raise ZeroDivisionError("division by zero")


dist.init_process_group("gloo")
check_data_parallel(dist.get_rank())
check_sharded(dist.get_rank())
check_refusals(dist.get_rank())
dist.destroy_process_group()
