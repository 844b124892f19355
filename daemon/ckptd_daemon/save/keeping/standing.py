"""How the committed steps of a run are counted: in the order they were saved, and without what is known to be bad.

A step's number says when it was in training, not when it was saved: who goes back to step 400 and saves 410 goes on
from there, whatever lies at 500. So the lives of the run count first, as its fence has them, then the saves of each.
No clock of another node decides, unless the fence has forgotten a life.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ckptd_daemon.save.attempts import Checkpoint
from ckptd_daemon.save.commit import damage, fences, manifests, owner
from ckptd_daemon.save.commit.damage import Damage
from ckptd_daemon.save.places import Place


@dataclass(frozen=True, slots=True)
class Standing:
    """The committed steps of one run."""

    steps: tuple[Checkpoint, ...]
    """In the order they were saved."""
    damaged: Mapping[int, Damage]
    """Those that are known to be bad, or cannot be read, by step."""

    @property
    def good(self) -> tuple[Checkpoint, ...]:
        """Those of which nothing bad is known, in the order they were saved."""
        return tuple(one for one in self.steps if one.step not in self.damaged)

    @property
    def latest(self) -> Checkpoint | None:
        """What was saved last, and a job goes on from: a good one, if there is one.

        Never one of which nobody can tell when it was saved.
        """
        known = tuple(one for one in self.steps if one.flaw is None)
        return next(reversed(self.good or known), None)

    def saves_of(self, incarnation: str) -> int:
        """Return the number that the next save of that life gets, as far as can be seen."""
        own = (one for one in self.steps if one.incarnation == incarnation)
        return max((owner.sequence_of(one.attempt) + 1 for one in own), default=0)


def of(place: Place, found: Sequence[Checkpoint] | None = None) -> Standing:
    """Return how the steps of the run, *found* if given, stand now."""
    steps = manifests.of_run(place) if found is None else found
    in_order = as_saved(steps, fences.lives(place))
    return Standing(tuple(in_order), damage.among(place, in_order))


def as_saved(found: Iterable[Checkpoint], lives: Sequence[str]) -> list[Checkpoint]:
    """Return *found* in the order they were saved; *lives* of the run, the present one last. Pure.

    A life that is not among *lives* was before them all.
    """
    steps = list(found)
    number = {incarnation: at for at, incarnation in enumerate(lives)}
    began: dict[str, float] = {}
    for one in steps:
        began[one.incarnation] = min(one.committed_at, began.get(one.incarnation, one.committed_at))

    def when(one: Checkpoint) -> tuple[float | str | int, ...]:
        life = one.incarnation
        save = owner.sequence_of(one.attempt)
        return number.get(life, -1), began[life], life, save, one.committed_at, one.step

    return sorted(steps, key=when)
