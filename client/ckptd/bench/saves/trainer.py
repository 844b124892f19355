"""`python -m ckptd.bench.saves.trainer TASK`: one rank, which trains, and saves when it is told.

It says `{}` when it is ready, and then answers each line of JSON with one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ckptd.bench.saves import state, ways
from ckptd.bench.saves.orders import Order, Report, Task
from ckptd.bench.saves.training import Steps, Training
from ckptd.bench.saves.ways import Pending

BEFORE_S = 2.0
"""Of steps before the save, to compare the later ones with."""
LIMIT_S = 600.0
_POLL_S = 0.002


def main() -> None:
    """Serve until there are no more lines."""
    task = Task(**json.loads(sys.argv[1]))
    place = f"tcp://127.0.0.1:{task.port}"
    dist.init_process_group("gloo", init_method=place, rank=task.rank, world_size=task.ranks)
    with ExitStack() as stack:
        training = stack.enter_context(Training.begun(with_worker=task.loader))
        shards = state.shards(Path(task.memory), task.rank, task.ranks, task.rank_bytes)
        way = stack.enter_context(ways.WAYS[task.way]())
        _say({})
        for line in sys.stdin:
            order = Order(**json.loads(line))
            report = _save(way, training, shards, order)
            if order.is_checked:
                report.problem = problem(way, shards, order)
            _say(asdict(report))
    dist.destroy_process_group()


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _save(way: ways.Way, training: Training, shards: state.State, order: Order) -> Report:
    state.mark(shards, order.step)
    dist.barrier()
    before = Steps()
    until = time.perf_counter() + BEFORE_S
    while order.is_training and time.perf_counter() < until:
        before.add(training.step())
    dist.barrier()
    began_s = time.perf_counter()
    pending = way.save(shards, Path(order.folder), order.step)
    blocked_s = time.perf_counter() - began_s
    meanwhile = Steps()
    while not _is_over(pending, began_s):
        if order.is_training:
            meanwhile.add(training.step())
        else:
            time.sleep(_POLL_S)
    durable_s = time.perf_counter() - began_s
    pending.check()
    cpu_s = before.cpu_s + meanwhile.cpu_s
    return Report(blocked_s, durable_s, before.mean_s, meanwhile.mean_s, len(meanwhile), cpu_s)


def _is_over(pending: Pending, began_s: float) -> bool:
    if time.perf_counter() - began_s > LIMIT_S:
        raise TimeoutError(f"not durable after {LIMIT_S:g} s")
    return pending.done()


def problem(way: ways.Way, shards: Mapping[str, torch.Tensor], order: Order) -> str:
    """Read back what this rank saved, with torch alone; return how it differs, if it does."""
    fresh = {name: torch.empty_like(tensor) for name, tensor in shards.items()}
    found = way.read(fresh, Path(order.folder), order.step)
    for name, tensor in shards.items():
        if not torch.equal(state.local(tensor), state.local(found[name])):
            return f"{name} came back with other elements"
    return ""


if __name__ == "__main__":
    main()
