"""What a save costs the steps of a GPU, beside torch's own background save at its best.

    python benchmarks/gpu_save.py DIR [--mib 4096] [--rounds 3]

One rank, one GPU. Exits with 1 if a target is missed, and with 3 where there is no GPU: without one
nothing is shown. As yet ckptd copies from a GPU synchronously, on the stream of the caller, into memory
that is not pinned; the targets are those of the side stream that is to come.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.staging import DefaultStager
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse, async_save

import ckptd

BLOCKED_MAX = 0.10
STEP_MAX = 1.02
STEPS = 50
WIDTH = 4096
NO_GPU = 3

Wait = Callable[[], object]


def main() -> int:
    """Take turns and judge."""
    parser = argparse.ArgumentParser(description="Measure saving from a GPU.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--mib", type=int, default=4096, help="size of the state")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("no GPU is here: what saving from one costs is not shown\n")
        return NO_GPU
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29571"}
    dist.init_process_group("cpu:gloo,cuda:nccl", rank=0, world_size=1)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        found = measured(Path(folder), arguments.mib, arguments.rounds)
    dist.destroy_process_group()
    return judged(found)


def measured(folder: Path, mib: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Return the medians, by contestant: seconds blocked, and how long a step takes beside one."""
    layers = max(1, mib * (1 << 20) // (4 * WIDTH * WIDTH))
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers))).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    batch = torch.randn(64, WIDTH, device="cuda")

    def steps() -> float:
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        for _ in range(STEPS):
            model(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.cuda.synchronize()
        return (time.perf_counter() - began_s) / STEPS

    stager = DefaultStager()
    state = {"model": model}
    with ckptd.Checkpointer(folder, experiment="bench", run="gpu", ranks="self") as checkpoints:
        checkpoints.prepare(state)

        def ours(number: int) -> Wait:
            return checkpoints.save(state, step=number).result

        def theirs(number: int) -> Wait:
            saved = async_save(
                {"model": model.state_dict()},
                checkpoint_id=folder / f"dcp-{number}",
                async_stager=stager,
            )
            assert isinstance(saved, AsyncSaveResponse)
            saved.staging_completion.result()  # before the step that would change what is copied
            return saved.upload_completion.result

        taken: dict[str, list[tuple[float, float]]] = {"ckptd": [], "dcp.async_save": []}
        contestants = {"ckptd": ours, "dcp.async_save": theirs}
        for number in range(rounds + 1):
            for name, save in contestants.items():
                alone_s = steps()
                began_s = time.perf_counter()
                wait = save(number)
                blocked_s = time.perf_counter() - began_s
                beside_s = steps()
                wait()
                if number:
                    taken[name].append((blocked_s, beside_s / alone_s))
    stager.close()
    return {
        name: (statistics.median(b for b, _ in runs), statistics.median(s for _, s in runs))
        for name, runs in taken.items()
    }


def judged(found: dict[str, tuple[float, float]]) -> int:
    """Print what was found beside the targets; return the exit code."""
    for name, (blocked_s, slower) in found.items():
        say(f"{name:16} blocked {blocked_s * 1e3:8.1f} ms, a step meanwhile {slower:.3f}x")
    (ours_s, slower), (theirs_s, _) = found["ckptd"], found["dcp.async_save"]
    targets = (
        (f"blocked {ours_s / theirs_s:.2f}x of dcp.async_save", ours_s / theirs_s, BLOCKED_MAX),
        (f"a step beside a save {slower:.3f}x", slower, STEP_MAX),
    )
    for text, value, limit in targets:
        say(f"{'met' if value <= limit else 'MISSED':6} {text}, to be at most {limit:g}x")
    return int(any(value > limit for _, value, limit in targets))


def say(line: str) -> None:
    """Tell people."""
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
