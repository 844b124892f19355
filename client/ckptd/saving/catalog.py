"""What is committed, as the daemon finds it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ckptd.link.connection import Connection, Stubs
from ckptd.saving.retention import Retention
from ckptd.values import Checkpoint, Corruption
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
        pinned=message.pinned,
        latest=message.latest,
        corrupt=corruption_of(message.corruption) if message.HasField("corruption") else None,
    )


def corruption_of(message: checkpoints_pb2.Corruption) -> Corruption:
    """Return what *message* tells of a checkpoint that is not what was saved."""
    chunk = message.chunk if message.HasField("chunk") else None
    return Corruption(message.file, chunk, message.what, message.found_at, message.newer)


class Catalog:
    """The committed checkpoints of one run."""

    def __init__(
        self,
        connection: Connection,
        root: Path,
        experiment: str,
        run: str,
        rules: Retention | None = None,
    ) -> None:
        self._connection = connection
        self._rules = rules  # say what is best
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

    def told(self, found: Checkpoint) -> dict[str, Any]:
        """Return one of them as JSON can say it, for other ranks to make it of: `heard`."""
        plain = {each.name: getattr(found, each.name) for each in fields(found)}
        corrupt = asdict(found.corrupt) if found.corrupt else None
        return plain | {
            "path": found.path.name,
            "metrics": dict(found.metrics),
            "corrupt": corrupt,
        }

    def heard(self, said: dict[str, Any]) -> Checkpoint:
        """Return what another rank has told of; its path is the one here."""
        corrupt = Corruption(**said["corrupt"]) if said["corrupt"] else None
        known = {"path": self._place / said["path"], "corrupt": corrupt}
        return Checkpoint(**{**said, **known, "metrics": MappingProxyType(said["metrics"])})

    def find(self, which: str | int) -> Checkpoint:
        """Return the checkpoint called *which*: "latest", "best", a step or a uuid.

        None that is known to be corrupt is "latest" or "best". Raises `NotFound`, telling what there
        is, `DataLoss` if all of it is corrupt, `Unimplemented` if only a later ckptd can read it.
        """
        if not isinstance(which, (str, int)) or isinstance(which, bool):
            text = f'{which!r} names no checkpoint; pass "latest", "best", a step or a uuid'
            raise errors.InvalidArgument(text)
        committed = self.committed()
        if which == "latest":
            found = self._latest(committed)
        elif which == "best":
            found = self._best(self._good(committed))
        else:
            found = [one for one in committed if which in (one.step, one.uuid or None)]
        if found:
            return found[0]
        steps = ", ".join(str(checkpoint.step) for checkpoint in committed[-10:]) or "none"
        kind = "step" if isinstance(which, int) else "checkpoint called"
        what = "committed checkpoint" if which == "latest" else f"committed {kind} {which}"
        raise errors.NotFound(f"{self._place} has no {what}; there are: {steps}")

    def _latest(self, committed: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Return what was saved last; an older daemon does not say which, so the highest step."""
        good = self._good(committed)
        return [one for one in good if one.latest] or good[-1:]

    def _good(self, committed: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Return those of which nothing bad is known; raises if there are others only."""
        good = [one for one in committed if one.corrupt is None]
        newer = [one for one in committed if one.corrupt is not None and one.corrupt.is_newer]
        if newer and not good:
            raise errors.Unimplemented(f"{newer[-1].path}/{_wrong(newer[-1])}")
        if committed and not good:
            why = [f"step {one.step}: {_wrong(one)}" for one in committed[-3:]]
            text = f"every committed checkpoint in {self._place} is corrupt ({', '.join(why)})"
            mend = "mend one with `ckptd verify --repair`, load a step by its number"
            raise errors.DataLoss(f"{text}; {mend}, or `ckptd rm` them to begin anew")
        return good

    def _best(self, committed: Sequence[Checkpoint]) -> list[Checkpoint]:
        if self._rules is None or not self._rules.monitor:
            text = 'nobody has said what is best; pass retention=Retention(monitor="loss", ...)'
            raise errors.InvalidArgument(text)
        name, sign = self._rules.monitor, 1 if self._rules.mode == "min" else -1
        ranked = [one for one in committed if not math.isnan(one.metrics.get(name, math.nan))]
        if not ranked and committed:
            text = f"no committed checkpoint in {self._place} has the metric {name!r}"
            raise errors.NotFound(f"{text}; pass metrics={{{name!r}: ...}} to save()")
        return sorted(ranked, key=lambda one: (sign * one.metrics[name], one.step))[:1]


def _wrong(found: Checkpoint) -> str:
    return "" if found.corrupt is None else f"{found.corrupt.file} {found.corrupt.what}"
