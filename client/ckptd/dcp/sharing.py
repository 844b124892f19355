"""What several ranks of a node read, as torch's plans carry it to the coordinator and back."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch.distributed as dist
from torch.distributed.checkpoint.planner import LoadPlan

from ckptd.saving.restoring import wanted_by_several

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")

Place = tuple[int, int]
"""Which of how many ranks that read the same this is."""


def are_several() -> bool:
    """Say whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def told(plan: LoadPlan, wanted: Mapping[str, str]) -> LoadPlan:
    """Return *plan*, which says what its rank wants, and with whom it shares a page cache."""
    return dataclasses.replace(plan, storage_data={"node": _node(), "chunks": dict(wanted)})


def agreed(plans: list[LoadPlan]) -> list[LoadPlan]:
    """Return *plans*, each with what others of its node want, too, and its place among them.

    Unless they are not those that `told` has made: a planner may have made others of them.
    """
    said = [plan.storage_data for plan in plans]
    if not all(isinstance(each, dict) and {"node", "chunks"} <= each.keys() for each in said):
        return plans
    nodes: dict[str, list[int]] = defaultdict(list)
    for rank, each in enumerate(said):
        nodes[each["node"]].append(rank)
    answers: dict[int, dict[str, object]] = {}
    for beside in nodes.values():
        shared = wanted_by_several([said[rank]["chunks"] for rank in beside])
        shared = {name: chunks for name, chunks in shared.items() if chunks}
        for place, rank in enumerate(beside):
            answers[rank] = {"shared": shared, "place": _place(place, beside, shared)}
    return [
        dataclasses.replace(plan, storage_data=answers[rank]) for rank, plan in enumerate(plans)
    ]


def heard(plan: LoadPlan) -> tuple[Mapping[str, int] | None, Place]:
    """Return which chunks of each file others read, too, and this rank's place among them.

    None if nobody has said so, and there are others.
    """
    said = plan.storage_data
    if isinstance(said, dict) and {"shared", "place"} <= said.keys():
        return said["shared"], said["place"]
    return (None if are_several() else {}), (0, 1)


def _place(place: int, beside: Sequence[int], shared: Mapping[str, int]) -> Place:
    return (place, len(beside)) if shared else (0, 1)


def _node() -> str:
    """Return what processes with one page cache have in common, in containers, too."""
    return _BOOT.read_text().strip()
