"""What each rank of the demo runs: ordinary training code, with ckptd at three places.

It fine-tunes the first layer of MiniLM to read handwritten digits (each a sequence of eight rows
of pixels), with dropout, shuffling and Adam, and goes on from the latest checkpoint if there is
one. What happens is told on stdout, one JSON object a line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

import ckptd

WIDTH, HEADS, INNER = 384, 12, 1536  # all-MiniLM-L6-v2
ROWS, PIXELS, CLASSES = 8, 8, 10  # the digits of scikit-learn
BATCH_SIZE = 16
TRAINED_ON = 1536  # of 1797 digits; the rest tells how well it reads


class Reader(nn.Module):
    """Reads a digit: a linear layer, one layer of MiniLM, a mean, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Linear(PIXELS, WIDTH)
        self.positions = nn.Parameter(torch.empty(ROWS, WIDTH))
        self.layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, INNER, dropout=0.1, activation="gelu", batch_first=True
        )
        self.digit = nn.Linear(WIDTH, CLASSES)

    def forward(self, digits: Tensor) -> Tensor:
        """Return one score per class."""
        read: Tensor = self.layer(self.rows(digits) + self.positions)
        scores: Tensor = self.digit(read.mean(dim=1))
        return scores

    def start_from(self, weights: Path) -> None:
        """Take the published weights in *weights*."""
        with torch.no_grad(), safe_open(weights, framework="pt") as published:
            for name, parts in _PUBLISHED.items():
                found = torch.cat([published.get_tensor(part) for part in parts])
                own = self.get_parameter(name)
                own.copy_(found[: len(own)])


def _published() -> dict[str, list[str]]:
    layer, attention = "encoder.layer.0", "encoder.layer.0.attention"
    names = {"positions": ["embeddings.position_embeddings.weight"]}
    for kind in ("weight", "bias"):
        queries = [f"{attention}.self.{part}.{kind}" for part in ("query", "key", "value")]
        names |= {
            f"layer.self_attn.in_proj_{kind}": queries,
            f"layer.self_attn.out_proj.{kind}": [f"{attention}.output.dense.{kind}"],
            f"layer.norm1.{kind}": [f"{attention}.output.LayerNorm.{kind}"],
            f"layer.linear1.{kind}": [f"{layer}.intermediate.dense.{kind}"],
            f"layer.linear2.{kind}": [f"{layer}.output.dense.{kind}"],
            f"layer.norm2.{kind}": [f"{layer}.output.LayerNorm.{kind}"],
        }
    return names


_PUBLISHED = _published()


class Digits:
    """This rank's share of the shuffled digits; how far it has got is part of a checkpoint."""

    def __init__(self, *, seed: int) -> None:
        data = load_digits()
        self.images = torch.tensor(data.images, dtype=torch.float32) / 16
        self.labels = torch.tensor(data.target)
        self._sampler: DistributedSampler[Any] = DistributedSampler(range(TRAINED_ON), seed=seed)  # type: ignore[arg-type]  # it only asks for a length
        self._epoch = 0
        self._taken = 0

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return the next images and their labels."""
        self._sampler.set_epoch(self._epoch)
        chosen = list(self._sampler)[self._taken : self._taken + BATCH_SIZE]
        self._taken += BATCH_SIZE
        if self._taken >= len(self._sampler):
            self._epoch, self._taken = self._epoch + 1, 0
        return self.images[chosen], self.labels[chosen]

    def state_dict(self) -> dict[str, int]:
        """Return how far it has got."""
        return {"epoch": self._epoch, "taken": self._taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from *state*."""
        self._epoch, self._taken = state["epoch"], state["taken"]


class Rng:
    """The random numbers that dropout draws, as a part of a checkpoint."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return where the generator stands."""
        return {"torch": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put the generator there."""
        torch.set_rng_state(state["torch"])


def train(url: str, root: str, run: str, *, seed: int, steps: int, save_every: int) -> None:
    """Train to *steps*, from the latest checkpoint of *run* if it has one."""
    rank = dist.get_rank()
    torch.manual_seed(seed)
    reader = Reader()
    reader.start_from(ckptd.fetch(url))
    model = DistributedDataParallel(reader)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    digits = Digits(seed=seed)
    rehearse(model, digits.images[:1])
    torch.manual_seed(seed + 1 + rank)  # each rank drops out other neurons

    state = {"model": model, "optimizer": optimizer, "digits": digits, f"rng.{rank}": Rng()}
    with ckptd.Checkpointer(root, experiment="demo", run=run) as checkpointer:
        first = 1
        if checkpointer.latest():
            first = checkpointer.load(state, "latest").step + 1
        tell("ready", first=first)
        checkpointer.prepare(state)
        for step in range(first, steps + 1):
            images, labels = digits.batch()
            loss = cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # so in torch
            optimizer.step()
            if step % save_every == 0:
                began = time.perf_counter()
                checkpointer.save(state, step=step, metrics={"loss": loss.item()})
                tell("saved", step=step, blocked_ms=round(1000 * (time.perf_counter() - began), 3))
            tell("trained", step=step)
    tell("finished", sha256=fingerprint(reader), accuracy=accuracy(reader, digits))


def rehearse(model: DistributedDataParallel, images: Tensor) -> None:
    """Let DDP settle, so that its sums have one order in a first and in a resumed run.

    It arranges its buckets anew after its first backward pass, and a sum of four floats depends
    on the order.
    """
    for _ in range(2):
        model(images).sum().backward()
    model.zero_grad()


def fingerprint(reader: nn.Module) -> str:
    """Return the SHA-256 of all parameters, to the last bit."""
    digest = hashlib.sha256()
    for name, value in reader.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def accuracy(reader: nn.Module, digits: Digits) -> float:
    """Return the share of the digits kept back from training that *reader* reads rightly."""
    reader.eval()
    with torch.no_grad():
        read = reader(digits.images[TRAINED_ON:]).argmax(dim=1)
    return float((read == digits.labels[TRAINED_ON:]).float().mean())


def tell(event: str, **facts: object) -> None:
    """Write one event to stdout, whole even when all ranks write at once."""
    line = json.dumps({"event": event, "rank": dist.get_rank(), **facts}) + "\n"
    os.write(sys.stdout.fileno(), line.encode())


def main() -> None:
    """Run one rank, as torchrun starts it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--run-name", dest="run", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--save-every", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    dist.init_process_group("gloo")
    try:
        train(**vars(options))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
