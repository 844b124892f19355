"""The runs that this process saves into: joined at the first save, whoever makes the writers."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from ckptd.dcp.target import Target
from ckptd.link.connection import Connection
from ckptd.saving import exchange as exchanges
from ckptd.saving.membership import Membership
from ckptd.saving.run import Run

TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class _Key:
    pid: int
    socket: Path
    place: Path
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Joined:
    run: Run
    group: dist.ProcessGroup | None
    """The default one of when the run was joined: its ranks are another job's in the next."""


_lock = threading.Lock()
_joined: dict[_Key, _Joined] = {}


def ranks_of(group: dist.ProcessGroup | None, *, no_dist: bool = False) -> tuple[int, ...]:
    """Return the global ranks of *group*, of all if None; of nobody else without a process group."""
    if no_dist or not (dist.is_available() and dist.is_initialized()):
        return (0,)
    return tuple(dist.get_process_group_ranks(group))


def run_of(target: Target, ranks: Sequence[int], *, socket: Path | None = None) -> Run:
    """Return the run of *target* as *ranks* save into it; joins, with them, the first time.

    Raises as `Checkpointer` does.
    """
    connection = Connection.open(socket)
    key = _Key(os.getpid(), connection.path, target.path.parent, tuple(ranks))
    group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
    with _lock:
        known = _joined.get(key)
        if known is not None and known.group is group:
            return known.run
        exchange = exchanges.among(ranks, TIMEOUT_S)
        member = Membership.join(connection, exchange, target.root, target.experiment, target.run)
        run = Run(connection, exchange, member, timeout_s=TIMEOUT_S)
        _joined[key] = _Joined(run, group)
        return run
