"""A process that has no ckptd reads a checkpoint."""

from __future__ import annotations

import sys
import warnings

for name in ("ckptd", "ckptd_daemon", "ckptd_proto"):
    sys.modules[name] = None  # type: ignore[assignment]  # importing it now fails

import torch
import torch.distributed.checkpoint as dcp

warnings.filterwarnings("ignore")
state = {"model": {name: torch.zeros_like(w) for name, w in torch.load(sys.argv[2]).items()}}
dcp.load(state, checkpoint_id=sys.argv[1], no_dist=True)
expected = torch.load(sys.argv[2])
assert all(torch.equal(state["model"][name], expected[name]) for name in expected)
sys.stdout.write("equal\n")
