"""What becomes of committed checkpoints: rules, pins, removal, what is corrupt. The daemon does it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ckptd.link.connection import Connection
from ckptd.saving.catalog import checkpoint_of, corruption_of
from ckptd.saving.retention import Retention
from ckptd.values import Checkpoint, Corruption
from ckptd_proto import errors
from ckptd_proto.v1 import checkpoints_pb2 as pb


@dataclass(frozen=True, slots=True)
class Ruling:
    """What becomes of a checkpoint, and why."""

    checkpoint: Checkpoint
    goes: bool
    """It was removed, or would be."""
    why: str


@dataclass(frozen=True, slots=True)
class Address:
    """Where one committed checkpoint is."""

    root: Path
    experiment: str
    run: str
    step: int

    @classmethod
    def at(cls, found: Checkpoint) -> Self:
        """Return where *found* is, as the daemon that listed it was asked."""
        return cls(found.path.parents[2], found.experiment, found.run, found.step)

    @classmethod
    def of(cls, path: Path) -> Self:
        """Return the address of the directory `<root>/<experiment>/<run>/step-<N>`, or of a link to it.

        Raises `InvalidArgument` for any other.
        """
        real = path.resolve()
        number = real.name.removeprefix("step-")
        if number == real.name or not number.isdecimal() or len(real.parts) < 5:
            text = f"{path} is no checkpoint; name a directory like ROOT/EXPERIMENT/RUN/step-700"
            raise errors.InvalidArgument(text)
        return cls(real.parents[2], real.parents[1].name, real.parent.name, int(number))


def retain(
    connection: Connection,
    root: Path,
    experiment: str,
    run: str,
    rules: Retention,
    *,
    timeout_s: float | None = None,
) -> None:
    """Have *rules* apply to the run from its next commit on.

    Raises `DeadlineExceeded` if the daemon has not taken them within *timeout_s*.
    """
    request = pb.RetainRequest(
        root=str(root), experiment=experiment, run=run, retention=rules.message()
    )
    connection.call(
        lambda stubs: stubs.checkpoints.Retain(request, timeout=timeout_s), timeout_s=timeout_s
    )


def pin(connection: Connection, address: Address, *, pinned: bool) -> bool:
    """Pin the checkpoint, or unpin it; says whether that changed anything."""
    request = pb.PinRequest(
        root=str(address.root),
        experiment=address.experiment,
        run=address.run,
        step=address.step,
        pinned=pinned,
    )
    return bool(connection.call(lambda stubs: stubs.checkpoints.Pin(request)).changed)


def remove(
    connection: Connection, address: Address, *, dry_run: bool = False, force: bool = False
) -> Checkpoint:
    """Remove the checkpoint, or only say whether it could be; returns what it was.

    Raises `FailedPrecondition` if it is pinned, being read or, without *force*, the latest.
    """
    request = pb.RemoveCheckpointRequest(
        root=str(address.root),
        experiment=address.experiment,
        run=address.run,
        step=address.step,
        dry_run=dry_run,
        force=force,
    )
    return checkpoint_of(connection.call(lambda stubs: stubs.checkpoints.Remove(request)).removed)


def suspect(
    connection: Connection, address: Address, uuid: str, file: str, chunk: int | None
) -> Corruption | None:
    """Have the daemon read back what was found corrupt of attempt *uuid*, and note it if it is.

    Returns what it found, None if that is as it was saved. Raises why it cannot be noted.
    """
    request = pb.SuspectRequest(
        root=str(address.root),
        experiment=address.experiment,
        run=address.run,
        step=address.step,
        uuid=uuid,
        file=file,
        chunk=chunk,
    )
    reply = connection.call(lambda stubs: stubs.checkpoints.Suspect(request))
    return corruption_of(reply.corruption) if reply.HasField("corruption") else None


def collect(
    connection: Connection,
    root: Path,
    experiment: str = "",
    run: str = "",
    *,
    rules: Retention | None = None,
    dry_run: bool = False,
) -> Iterator[Ruling]:
    """Apply *rules*, or those of each run, below *root*; yield what becomes of each checkpoint."""
    request = pb.CollectRequest(
        root=str(root),
        experiment=experiment,
        run=run,
        retention=None if rules is None else rules.message(),
        dry_run=dry_run,
    )
    for message in connection.call(lambda stubs: list(stubs.checkpoints.Collect(request))):
        yield Ruling(checkpoint_of(message.checkpoint), message.goes, message.why)
