"""`python -m ckptd.bench.restores.loader TASK`: one rank, which saves or loads when it is told.

It says `{}` when it is ready, and then answers each line of JSON with one.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ckptd.bench.restores import target, ways
from ckptd.bench.restores.orders import Order, Report, Task
from ckptd.bench.saves import state


def main() -> None:
    """Serve until there are no more lines."""
    task = Task(**json.loads(sys.argv[1]))
    torch.set_num_threads(1)
    place = f"tcp://127.0.0.1:{task.port}"
    dist.init_process_group("gloo", init_method=place, rank=task.rank, world_size=task.ranks)
    with ways.WAYS[task.way]() as way:
        _say({})
        for line in sys.stdin:
            order = Order(**json.loads(line))
            _say(asdict(_save(way, task, order) if order.is_save else _load(way, task, order)))
    dist.destroy_process_group()


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _save(way: ways.Way, task: Task, order: Order) -> Report:
    shards = state.shards(Path(task.memory), task.rank, task.ranks, task.rank_bytes)
    way.save(shards, Path(order.folder))
    return Report(0.0)


def _load(way: ways.Way, task: Task, order: Order) -> Report:
    found = target.blank(task)
    way.ready(found, Path(order.folder))
    dist.barrier()
    began_s, used_s = time.perf_counter(), time.process_time()
    way.load(found, Path(order.folder))
    took_s, used_s = time.perf_counter() - began_s, time.process_time() - used_s
    return Report(took_s, used_s, target.problem(task, found) if order.is_checked else "")


if __name__ == "__main__":
    main()
