"""What a save costs the steps of a GPU, beside torch's own background save at its best.

    python benchmarks/gpu_save.py DIR [--mib 4096] [--rounds 3]

One rank, one GPU; a model whose parameters and Adam state are what is saved. Exits with 1 if a target
is missed or a byte is wrong, and with 3 where there is no GPU: without one nothing is shown.

*blocked* is how long the training's thread waits: for the call that saves, and before the next
optimizer's step for what must be over by then. A step's time beside a save includes what its kernels
wait for. The bytes are checked by stock `dcp.load`, after a step that came right behind `save()`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse, async_save

import ckptd

BLOCKED_MAX = 0.10
STEP_MAX = 1.02
PINNED_MIN = 0.80
STEPS = 50
WIDTH = 4096
NO_GPU = 3


class Trainer:
    """A model of *mib* MiB together with its optimizer's state, and the steps it takes."""

    def __init__(self, device: torch.device, mib: int, width: int) -> None:
        layers = max(1, mib * (1 << 20) // (3 * 4 * width * width))
        parts = (nn.Linear(width, width, bias=False, device=device) for _ in range(layers))
        self.device = device
        self.model = nn.Sequential(*parts)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.batch = torch.randn(64, width, device=device)
        self.step()

    def step(self, join: Callable[[], float] = float) -> float:
        """Take one; *join* comes before the optimizer's, and returns how long that waited."""
        self.model(self.batch).square().mean().backward()
        waited_s = join()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return waited_s

    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def state(self) -> dict[str, Any]:
        """Return the state as torch's own calls take it."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}


class Saving(Protocol):
    """A save that has been begun."""

    def join(self) -> float:
        """Wait for what must be over before the optimizer's step; return the seconds."""

    def wait(self) -> None:
        """Wait until it is durable."""


Begin = Callable[[int], Saving]


class Ours:
    """By ckptd."""

    def __init__(self, trainer: Trainer, checkpoints: ckptd.Checkpointer) -> None:
        self._state = {"model": trainer.model, "optimizer": trainer.optimizer}
        self._checkpoints = checkpoints

    def __call__(self, number: int) -> Ours:
        """Begin a save."""
        self.save = self._checkpoints.save(self._state, step=number)
        return self

    def join(self) -> float:
        """Return at once."""
        return 0.0  # the step's kernels wait, and its thread does not

    def wait(self) -> None:
        """Wait until it is committed."""
        self.save.result()


class Theirs:
    """By `dcp.async_save`, with memory that is kept and pinned, and staging beside the training."""

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        is_gpu = trainer.device.type == "cuda"
        self.stager = DefaultStager(StagingOptions(is_gpu, True, is_gpu, is_gpu))
        self._state = trainer.state()
        self._folder = folder

    def __call__(self, number: int) -> Theirs:
        """Begin a save."""
        place = self._folder / f"dcp-{number}"
        self._saved = async_save(self._state, checkpoint_id=place, async_stager=self.stager)
        return self

    def join(self) -> float:
        """Wait until it is staged."""
        began_s = time.perf_counter()
        if isinstance(self._saved, AsyncSaveResponse):
            self._saved.staging_completion.result()
        return time.perf_counter() - began_s

    def wait(self) -> None:
        """Wait until it is written."""
        saved = self._saved
        (saved.upload_completion if isinstance(saved, AsyncSaveResponse) else saved).result()


@dataclass(frozen=True, slots=True)
class Found:
    """What came of it."""

    blocked_s: Mapping[str, float]
    """The median, by contestant."""
    slower: Mapping[str, float]
    """How long a step takes beside a save, over one alone."""
    pinned: float
    """How fast ckptd's copy is, over a bare one to pinned memory."""
    wrong: tuple[str, ...]
    """Tensors that stock torch loads otherwise than they were when `save` was called."""


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
    device = torch.device("cuda", torch.cuda.current_device())
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        trainer = Trainer(device, arguments.mib, WIDTH)
        found = measured(trainer, Path(folder), arguments.rounds)
    dist.destroy_process_group()
    return judged(found)


def measured(trainer: Trainer, folder: Path, rounds: int, steps: int = STEPS) -> Found:
    """Let the contestants take turns, then look at what ckptd has copied, and how fast."""
    blocked: dict[str, list[float]] = {"ckptd": [], "dcp.async_save": []}
    slower: dict[str, list[float]] = {"ckptd": [], "dcp.async_save": []}
    with ckptd.Checkpointer(folder, experiment="bench", run="gpu", ranks="self") as checkpoints:
        checkpoints.prepare({"model": trainer.model, "optimizer": trainer.optimizer})
        ours, theirs = Ours(trainer, checkpoints), Theirs(trainer, folder)
        contestants: dict[str, Begin] = {"ckptd": ours, "dcp.async_save": theirs}
        for number in range(rounds + 1):
            for name, begin in contestants.items():
                blocked_s, ratio = _turn(trainer, begin, number, steps)
                if number:  # the first touches, plans and registers memory
                    blocked[name].append(blocked_s)
                    slower[name].append(ratio)
        theirs.stager.close()
        pinned = statistics.median(
            _speed(trainer, ours, rounds + 1 + number) for number in range(rounds)
        )
        wrong = tuple(_wrong(trainer, ours, 2 * rounds + 1))
    return Found(
        {name: statistics.median(each) for name, each in blocked.items()},
        {name: statistics.median(each) for name, each in slower.items()},
        pinned,
        wrong,
    )


def judged(found: Found) -> int:
    """Print what was found beside the targets; return the exit code."""
    for name, blocked_s in found.blocked_s.items():
        slower = found.slower[name]
        _say(f"{name:16} blocked {blocked_s * 1e3:8.1f} ms, a step meanwhile {slower:.3f}x")
    blocked = found.blocked_s["ckptd"] / found.blocked_s["dcp.async_save"]
    slower = found.slower["ckptd"]
    targets = (
        (f"blocked {blocked:.2f}x of dcp.async_save, to be at most {BLOCKED_MAX:g}x",
         blocked <= BLOCKED_MAX),
        (f"a step beside a save {slower:.3f}x, to be at most {STEP_MAX:g}x", slower <= STEP_MAX),
        (f"copied at {found.pinned:.2f}x of pinned speed, to be at least {PINNED_MIN:g}x",
         found.pinned >= PINNED_MIN),
        (f"{len(found.wrong)} tensors are not what they were: {', '.join(found.wrong[:5]) or '-'}",
         not found.wrong),
    )  # fmt: skip
    for text, is_met in targets:
        _say(f"{'met' if is_met else 'MISSED':6} {text}")
    return int(not all(is_met for _, is_met in targets))


def _turn(trainer: Trainer, begin: Begin, number: int, steps: int) -> tuple[float, float]:
    """Save once; return how long that blocked, and a step's time beside it over one's alone."""
    trainer.synchronize()
    began_s = time.perf_counter()
    for _ in range(steps):
        trainer.step()
    trainer.synchronize()
    alone_s = time.perf_counter() - began_s
    began_s = time.perf_counter()
    saving = begin(number)
    blocked_s = time.perf_counter() - began_s
    began_s = time.perf_counter()
    waited_s = trainer.step(saving.join)
    for _ in range(steps - 1):
        trainer.step()
    trainer.synchronize()
    beside_s = time.perf_counter() - began_s - waited_s
    saving.wait()
    return blocked_s + waited_s, beside_s / alone_s


def _speed(trainer: Trainer, ours: Ours, number: int) -> float:
    """Return the speed of a save while nothing else runs, over that of a bare copy."""
    sources = [tensor for _, tensor in _tensors(trainer.state()) if tensor.device == trainer.device]
    size_bytes = sum(tensor.nbytes for tensor in sources)
    is_gpu = trainer.device.type == "cuda"
    memory = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=is_gpu)
    trainer.synchronize()
    began_s = time.perf_counter()
    start = 0
    for source in sources:
        target = memory[start : start + source.nbytes].view(source.dtype).view(source.shape)
        target.copy_(source, non_blocking=True)
        start += source.nbytes
    trainer.synchronize()
    bare_s = time.perf_counter() - began_s
    save = ours(number).save
    save.result()
    return bare_s / (save.blocked_s - save.plan_s + save.copied_s)


def _wrong(trainer: Trainer, ours: Ours, number: int) -> Iterator[str]:
    """Save, take a step at once, and yield what stock torch then loads otherwise than it was."""
    expected = {name: tensor.cpu().clone() for name, tensor in _tensors(trainer.state())}
    save = ours(number).save
    trainer.step()
    trainer.synchronize()
    target = trainer.state()
    changed = [name for name, each in _tensors(target) if not _equal(each.cpu(), expected[name])]
    if len(changed) < len(expected):
        yield "the step itself, which changed too little"
    loaded = _to_cpu(target)
    load(loaded, checkpoint_id=save.result().path)
    for name, tensor in _tensors(loaded):
        if not _equal(tensor, expected[name]):
            yield name


def _equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    bits = (each.contiguous().reshape(-1).view(torch.uint8) for each in (left, right))
    return torch.equal(*bits)


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}".lstrip("."))


def _to_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {key: _to_cpu(item) for key, item in value.items()}
    return value


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
