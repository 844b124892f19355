"""The life of an attempt: a value per state, and the table of what may follow what. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import Final, Self

from ckptd_daemon.save.members import Members
from ckptd_daemon.save.places import Place
from ckptd_proto import errors


class State(Enum):
    """Only COMMITTED exists for readers."""

    OPEN = "OPEN"
    STAGED = "STAGED"
    LOCAL = "LOCAL"
    DURABLE = "DURABLE"
    COMMITTED = "COMMITTED"
    ABORTED = "ABORTED"

    @property
    def is_final(self) -> bool:
        """Nothing follows."""
        return not FOLLOWS[self]


FOLLOWS: Final[Mapping[State, frozenset[State]]] = MappingProxyType(
    {
        State.OPEN: frozenset({State.STAGED, State.ABORTED}),
        State.STAGED: frozenset({State.LOCAL, State.ABORTED}),
        # back to STAGED where the place has failed and may be well again
        State.LOCAL: frozenset({State.DURABLE, State.STAGED, State.ABORTED}),
        State.DURABLE: frozenset({State.COMMITTED, State.STAGED, State.ABORTED}),
        State.COMMITTED: frozenset(),
        State.ABORTED: frozenset(),
    }
)


class WrongState(Exception):
    """A defect of ours: a step that the table does not allow."""


@dataclass(frozen=True, slots=True)
class Image:
    """One file of a checkpoint, by name and length."""

    name: str
    size_bytes: int


class WhenFull(Enum):
    """What a job wants to become of a save when every slot is taken."""

    WAIT = "wait"
    SKIP = "skip"
    SUPERSEDE = "supersede"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A save that is not made, by any rank."""

    reason: str


@dataclass(frozen=True, slots=True)
class Flaw:
    """Why a committed step's manifest says nothing to this daemon."""

    what: str
    """In words."""
    is_newer: bool = False
    """Nothing is wrong with it: a later ckptd wrote it."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is committed, as its manifest says."""

    place: Place
    step: int
    attempt: str
    incarnation: str
    plan_hash: str
    size_bytes: int
    metrics: Mapping[str, float]
    committed_at: float
    uid: int | None = None
    """Of whoever saved it; None if its manifest does not say."""
    flaw: Flaw | None = None
    """If the manifest says nothing: then of all this only place and step are known."""


@dataclass(frozen=True, slots=True)
class JobKey:
    """One life of a job that saves into a run."""

    id: str
    place: Place
    incarnation: str
    world_size: int
    uid: int
    root_at: tuple[int, int] = (0, 0)
    """Device and inode of the root when the job joined; zeros if nobody looked."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A set of images that commit together, or not at all."""

    id: str
    job: JobKey
    sequence: int
    step: int
    plan_hash: str
    replaces: bool
    """A committed step of the same number gives way."""
    members: Members | None = None
    """The daemons of its ranks; None if there is but this one."""
    state: State = State.OPEN
    sealed: Mapping[int, tuple[Image, ...]] = field(default_factory=dict)
    """What each rank has staged."""
    plan: tuple[Image, ...] | None = None
    """Every image of every rank, once rank 0 has sealed."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    """When COMMITTED."""
    failure: errors.CkptdError | None = None
    """When ABORTED."""
    superseded_by: int | None = None
    """The step that took its place, if that is why."""

    @property
    def total_bytes(self) -> int:
        """What is staged so far."""
        return sum(image.size_bytes for images in self.sealed.values() for image in images)

    @property
    def ranks(self) -> Sequence[int]:
        """The ranks that this daemon has."""
        members = self.members
        return range(self.job.world_size) if members is None else members.ranks(members.own)

    def unsealed_ranks(self) -> list[int]:
        """Return the ranks of this daemon that are still awaited."""
        return [rank for rank in self.ranks if rank not in self.sealed]

    @property
    def shown_state(self) -> State:
        """What is known of the whole: of several daemons, each knows only its own part."""
        is_part = self.members is not None and self.state in {State.STAGED, State.LOCAL}
        return State.OPEN if is_part else self.state

    def is_same(self, found: Checkpoint) -> bool:
        """Whether the committed step is what this attempt would make of it, and may stay."""
        theirs = (found.incarnation, found.plan_hash)
        return theirs == (self.job.incarnation, self.plan_hash) and not self.replaces

    def to(self, state: State) -> Self:
        """Return the attempt in *state*; raises `WrongState` if the table forbids it."""
        if state not in FOLLOWS[self.state]:
            raise WrongState(f"attempt {self.id} cannot go from {self.state.name} to {state.name}")
        return replace(self, state=state)

    def with_seal(
        self,
        rank: int,
        images: tuple[Image, ...],
        *,
        plan: tuple[Image, ...] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> Self:
        """Return the attempt with what *rank* staged: STAGED once every rank here has sealed."""
        if self.state is not State.OPEN or rank in self.sealed:
            raise WrongState(f"rank {rank} cannot seal attempt {self.id} ({self.state.name})")
        sealed = replace(self, sealed={**self.sealed, rank: images})
        if rank == 0:
            sealed = replace(sealed, plan=plan, metrics=dict(metrics or {}))
        return sealed if sealed.unsealed_ranks() else sealed.to(State.STAGED)

    def committed(self, checkpoint: Checkpoint) -> Self:
        """Return the attempt as readers see it from now on."""
        return replace(self.to(State.COMMITTED), checkpoint=checkpoint)

    def aborted(self, failure: errors.CkptdError) -> Self:
        """Return the attempt given up because of *failure*."""
        return replace(self.to(State.ABORTED), failure=failure)


def taken(found: Checkpoint) -> errors.AlreadyExists:
    """Return the error for a step that somebody else has committed."""
    if found.flaw is not None:
        where = f"the manifest of {found.place.step(found.step)} {found.flaw.what}"
        return errors.AlreadyExists(f"{where}; save the step again, which replaces it")
    return errors.AlreadyExists(
        f"{found.place.step(found.step)} is committed already, by attempt {found.attempt} of "
        f"incarnation {found.incarnation}; save another step, or pass on_existing='replace'"
    )
