"""What the protocol promises, of all that was told and all that was there."""

from __future__ import annotations

import json
from pathlib import Path

from ckptd_daemon.save.attempts import Attempt, Checkpoint
from ckptd_daemon.save.nodes.protocol import Outcome
from ckptd_proto import errors
from simulation.directory import Dir, Directory
from simulation.nodes import PLACE, Node, life_of


class Broken(AssertionError):
    """A promise was not kept."""


class Promises:
    """Sees and hears everything; raises `Broken` at once."""

    def __init__(self) -> None:
        self.attempts: dict[str, Attempt] = {}
        self.told: dict[str, list[tuple[str, Outcome]]] = {}
        """By attempt, the outcomes that daemons came to, and which of them did."""
        self.committed: dict[int, list[str]] = {}
        """By step, the attempts that it was, one after another."""
        self.present = 0
        """The life of the run that saves."""

    def named(self, path: Path, what: Dir) -> None:
        """Hear that a directory has got a name."""
        if path.parent != PLACE.directory:
            return
        step = int(path.name.removeprefix("step-"))
        manifest = what.entries.get("manifest.json")
        if not isinstance(manifest, bytes):
            raise Broken(f"{path.name} appeared without a manifest")
        attempt = self.attempts[json.loads(manifest)["attempt"]]
        for rank in range(attempt.job.world_size):
            if what.entries.get(f"__{rank}_0.distcp") != f"{attempt.id} {rank}".encode():
                raise Broken(f"{attempt.id} was committed without the image of rank {rank}")
        history = self.committed.setdefault(step, [])
        if attempt.id not in history:
            if history and not attempt.replaces:
                raise Broken(f"step {step} is {attempt.id} after it was {history[-1]}")
            history.append(attempt.id)
        elif history[-1] != attempt.id and self._was_told(history[-1]):
            raise Broken(f"{attempt.id} came back as step {step} after {history[-1]}")
        if any(isinstance(outcome, errors.CkptdError) for _, outcome in self._outcomes(attempt)):
            raise Broken(f"{attempt.id} was committed after somebody had heard it was aborted")

    def tell(self, attempt: Attempt, name: str, outcome: Outcome) -> None:
        """Hear what became of an attempt, as a daemon says."""
        self.told.setdefault(attempt.id, []).append((name, outcome))
        self._check_told(attempt)

    def check_end(self, directory: Directory, nodes: list[Node], *, has_errors: bool) -> None:
        """Look at what is there when nothing happens any more."""
        for node in nodes:
            for part in node.parts:
                if part.outcome is None and not node.is_lost:
                    raise Broken(f"{node.name} never learned what became of {part.attempt.id}")
        for step, history in self.committed.items():
            there = directory.find(PLACE.step(step) / "manifest.json")
            told = [attempt for attempt in history if self._was_told(attempt)]
            if told and not isinstance(there, bytes):
                raise Broken(f"step {step} is gone, and somebody was told of it")
            if told and json.loads(there)["attempt"] not in history[history.index(told[-1]) :]:
                raise Broken(f"step {step} is an older one than {told[-1]}, which was told of")
        if not has_errors:
            for attempt_id, told in self.told.items():
                if self._is_long_past(self.attempts[attempt_id]):
                    continue
                said = {str(one) for _, one in told if isinstance(one, errors.CkptdError)}
                if len(said) > 1:
                    raise Broken(f"{attempt_id} ended with {len(said)} different sentences: {said}")

    def _outcomes(self, attempt: Attempt) -> list[tuple[str, Outcome]]:
        return self.told.get(attempt.id, [])

    def _is_past(self, attempt: Attempt) -> bool:
        history = self.committed.get(attempt.step, [])
        after = history[history.index(attempt.id) :] if attempt.id in history else []
        return any(self.attempts[one].job.incarnation != attempt.job.incarnation for one in after)

    def _is_long_past(self, attempt: Attempt) -> bool:
        """A life after the next has begun, and taken away the note that said why."""
        return life_of(attempt) < self.present - 1

    def _was_told(self, attempt_id: str) -> bool:
        return any(isinstance(told, Checkpoint) for _, told in self.told.get(attempt_id, []))

    def _check_told(self, attempt: Attempt) -> None:
        if self._is_past(attempt) or self._is_long_past(attempt):
            return  # who slept until a later life had replaced it cannot know any more
        name, outcome = self._outcomes(attempt)[-1]
        for other, before in self._outcomes(attempt):
            if isinstance(outcome, Checkpoint) != isinstance(before, Checkpoint):
                raise Broken(f"{attempt.id}: {other} heard {before!r} and {name} {outcome!r}")
        if isinstance(outcome, Checkpoint):
            history = self.committed.get(attempt.step, [])
            if outcome.attempt not in history:
                raise Broken(f"{name} was told of {outcome.attempt}, which is nowhere")
        elif attempt.id in self.committed.get(attempt.step, []):
            raise Broken(f"{name} was told that {attempt.id} is aborted, and it is committed")
