"""A process that has no ckptd reads a checkpoint, on its own."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

for name in ("ckptd", "ckptd_daemon", "ckptd_proto"):
    sys.modules[name] = None  # type: ignore[assignment]  # importing it now fails

import states
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

warnings.filterwarnings("ignore")
expected = states.whole()
for path in map(Path, sys.argv[1:]):
    found = {"tensors": states.zeros(expected), "plain": dict.fromkeys(states.OBJECTS)}
    found["plain"]["schedule"] = {"milestones": None, "last": None}
    dcp.load(found, checkpoint_id=path, no_dist=True)
    states.check_same(found["tensors"], expected)
    assert found["plain"] == states.OBJECTS
    one = path.with_suffix(".pt")
    dcp_to_torch_save(path, one)
    converted = torch.load(one, weights_only=True)
    states.check_same(converted["tensors"], expected)
    assert converted["plain"] == states.OBJECTS
    assert converted["only.1"]["dataloader"] == {"position": 1}
    assert torch.equal(converted["only.1"]["weights"], torch.ones(2))
sys.stdout.write("equal\n")
