"""Two ranks save a model that both hold, and load it from the disk; each says what it read there."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import torch
from torch import nn

import ckptd
from ckptd.link.connection import Connection
from ckptd.saving import memory

root, size = Path(sys.argv[1]), int(sys.argv[2])
rank = int(os.environ["RANK"])


def read_bytes() -> int:
    """Return what this process has had read from disks."""
    found = re.search(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def model(value: float) -> nn.Module:
    net = nn.Module()
    for number in range(16):
        net.register_parameter(str(number), nn.Parameter(torch.full((size // 64,), value)))
    return net


with ckptd.Checkpointer(root, experiment="e", run="r") as ckpt:
    saved = ckpt.save({"net": model(3.0)}, step=1).result(60)
memory.quarantine(Connection.open(), saved.uuid, f"__{rank}_0.distcp", "so that files are read")
with ckptd.Checkpointer(root, experiment="e", run="r") as ckpt:
    net = model(0.0)
    before = read_bytes()
    ckpt.load({"net": net})
    is_right = all(bool((parameter == 3).all()) for parameter in net.parameters())
    sys.stdout.write(f"{is_right} {read_bytes() - before}\n")
