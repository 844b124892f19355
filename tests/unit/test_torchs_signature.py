"""`ckptd.dcp.async_save` is called as torch's own: who changes the import changes nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch.distributed import checkpoint

from ckptd import dcp

# What differs on purpose is what torch before 2.13 may lack, and the types: ours returns a
# `PendingSave`, which is the future and the response that torch's returns one or the other of.
LATER = {"async_stager", "no_dist", "use_collectives"}


def parameters(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Return how each is passed, and what it is by default."""
    found = inspect.signature(function).parameters.values()
    return {each.name: (each.kind, each.default) for each in found}


def test_async_save_takes_what_torchs_own_takes_and_as_that_does() -> None:
    ours, theirs = parameters(dcp.async_save), parameters(checkpoint.async_save)
    lacking = ours.keys() - theirs.keys()
    assert lacking <= LATER
    assert {name: how for name, how in ours.items() if name not in lacking} == theirs
