"""What is committed, as the daemon finds it."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Literal

from ckptd.link.connection import Connection, Stubs
from ckptd.values import Checkpoint
from ckptd_proto import errors
from ckptd_proto.v1 import checkpoints_pb2


def checkpoint_of(message: checkpoints_pb2.Checkpoint) -> Checkpoint:
    """Return the checkpoint that *message* tells of."""
    return Checkpoint(
        path=Path(message.path),
        experiment=message.experiment,
        run=message.run,
        step=message.step,
        uuid=message.uuid,
        size_bytes=message.size_bytes,
        metrics=MappingProxyType(dict(message.metrics)),
        committed_at=message.committed_at,
    )


class Catalog:
    """The committed checkpoints of one run."""

    def __init__(self, connection: Connection, root: Path, experiment: str, run: str) -> None:
        self._connection = connection
        self._place = root / experiment / run
        self._request = checkpoints_pb2.ListCheckpointsRequest(
            root=str(root), experiment=experiment, run=run
        )

    def __repr__(self) -> str:
        return f"<Catalog {self._place}>"

    def committed(self) -> list[Checkpoint]:
        """Return them by rising step."""

        def listed(stubs: Stubs) -> list[Checkpoint]:
            return [checkpoint_of(each) for each in stubs.checkpoints.List(self._request)]

        return self._connection.call(listed)

    def find(self, which: Literal["latest"] | int) -> Checkpoint:
        """Return the checkpoint called *which*; raises `NotFound`, telling what there is."""
        if which != "latest" and not (isinstance(which, int) and not isinstance(which, bool)):
            text = f'{which!r} names no checkpoint; pass "latest" or a step'
            raise errors.InvalidArgument(text)
        committed = self.committed()
        if which == "latest" and committed:
            return committed[-1]
        for checkpoint in committed:
            if checkpoint.step == which:
                return checkpoint
        steps = ", ".join(str(checkpoint.step) for checkpoint in committed[-10:]) or "none"
        what = "no committed checkpoint" if which == "latest" else f"no committed step {which}"
        raise errors.NotFound(f"{self._place} has {what}; there are: {steps}")
