"""Nodes, what the daemon of each has in hand, and what a later life of the run ends of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ckptd_daemon.save.attempts import Attempt
from ckptd_daemon.save.commit import manifests
from ckptd_daemon.save.members import is_attempt_of_any
from ckptd_daemon.save.nodes import operations as ops
from ckptd_daemon.save.nodes.protocol import REPLACED, Outcome
from ckptd_daemon.save.nodes.receipts import encode_note
from ckptd_daemon.save.places import Place
from ckptd_proto import errors
from simulation.directory import View

PLACE = Place(Path("/root"), "e", "r")


@dataclass(eq=False)
class Part:
    """What one daemon has of an attempt; as its arena has it, so it survives the daemon."""

    attempt: Attempt
    is_sealed: bool = False
    is_doomed: bool = False
    outcome: Outcome | None = None
    begun_in: int = -1
    """The life of its daemon that finishes it."""

    @property
    def is_staging(self) -> bool:
        return not self.is_sealed and not self.is_doomed and self.outcome is None


@dataclass(eq=False)
class Node:
    name: str
    view: View
    parts: list[Part] = field(default_factory=list)
    life: int = 0
    is_up: bool = True
    is_lost: bool = False
    paused_until: float = 0.0
    delivers_in: int = -1
    """The life in which it is writing images, one attempt's at a time."""
    newest_first: bool = False
    """It has been told that it is about to go away."""
    calls: int = 0


def life_of(attempt: Attempt) -> int:
    return int(attempt.job.incarnation.removeprefix("life "))


def repair(node: Node, part: Part, tokens: Iterator[int]) -> ops.Steps[None]:
    """End what earlier lives have left, as `commit.repair` and `elsewhere` do."""
    in_hand = {each.attempt.id for each in node.parts if each.outcome is None}
    earlier = [f"life {life}" for life in range(life_of(part.attempt))]
    for path in _left(node.view):
        if path.name not in in_hand:
            yield from _put_back(path / REPLACED)
    for path in _left(node.view):
        attempt_id, _, kind = path.name.partition(".")
        if kind.endswith("gone"):
            yield from _delete(path)
        elif attempt_id in in_hand:
            continue
        elif kind == "abort":
            if is_attempt_of_any(earlier[:-1], attempt_id):
                yield ops.Sweep(path)
        elif is_attempt_of_any(earlier, attempt_id):
            if not kind:
                note = encode_note(attempt_id, "", errors.FailedPrecondition("a newer life"))
                yield ops.Note(path.with_name(f"{attempt_id}.abort"), note)
            gone = path.with_name(f"{path.name}.{next(tokens)}.gone")
            if (yield ops.Rename(path, gone)) is ops.Renamed.DONE:
                yield from _delete(gone)


def _left(seen: View) -> list[Path]:
    return [PLACE.attempts / name for name in seen.names(PLACE.attempts)]


def _put_back(replaced: Path) -> ops.Steps[None]:
    data: bytes | None = yield ops.Read(replaced / "manifest.json")
    if data is None:
        return
    step = PLACE.step(manifests.decode(data, PLACE).step)
    if not (yield ops.Exists(step)):
        yield ops.Rename(replaced, step)


def _delete(gone: Path) -> ops.Steps[None]:
    yield from _put_back(gone / REPLACED)
    yield ops.Sweep(gone)
