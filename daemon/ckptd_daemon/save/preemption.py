"""The daemon or its node is about to go away: what is saved by then, and what is not. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from ckptd_daemon.save.attempts import State
from ckptd_daemon.save.places import Place
from ckptd_daemon.save.track import Track


@dataclass(frozen=True, slots=True)
class Preemption:
    """Why there is little time, and how much. By the monotonic clock."""

    cause: str
    began_at: float
    ends_at: float
    takes_node: bool
    """The memory goes as well: what is not written by then is lost."""


class Fate(Enum):
    """What became of an attempt that was in hand when the time began to run."""

    SAVED = "saved"
    SUPERSEDED = "superseded"
    LOST = "lost"
    DELIVERED = "delivered"
    """Written here; the daemons of other nodes can finish it."""
    STAGED = "staged"
    """Whole, in this node's memory, where the next start finds it."""
    OPEN = "open"
    """Some rank has not staged it."""


@dataclass(frozen=True, slots=True)
class Fated:
    """One attempt, and its fate."""

    place: Place
    step: int
    fate: Fate
    why: str = ""


@dataclass(frozen=True, slots=True)
class PreemptionStatistics:
    """How far saving is when there is little time."""

    cause: str
    left_s: float
    takes_node: bool
    attempts: tuple[Fated, ...]


def fates(preemption: Preemption, tracks: Iterable[Track]) -> tuple[Fated, ...]:
    """Return what became of all *tracks* that had not ended when it began, by run and step."""
    found = [
        Fated(track.attempt.job.place, track.attempt.step, *_fate(track))
        for track in tracks
        if not track.attempt.state.is_final or track.moved_at >= preemption.began_at
    ]
    return tuple(sorted(found, key=lambda one: (str(one.place), one.step)))


def superseding(
    track: Track, ended: Iterable[Track], preemption: Preemption, now: float
) -> Track | None:
    """Return the newer step of the run that makes *track* dispensable, if there is no time for it.

    It is as long as what was saved last took to be written.
    """
    if not preemption.takes_node:
        return None
    newer = [one for one in ended if _is_newer_step(one, track)]
    last = max(newer, key=lambda one: one.staged_at, default=None)
    phases = None if last is None else last.phases()
    if phases is None or phases.persist_s <= preemption.ends_at - now:
        return None
    return last


def sentences(attempts: Sequence[Fated]) -> list[str]:
    """Return a sentence for each run: what was saved of it, and what was not."""
    by_place: dict[Place, list[Fated]] = {}
    for one in attempts:
        by_place.setdefault(one.place, []).append(one)
    return [f"{place}: {_listed(of_run)}" for place, of_run in by_place.items()]


def _fate(track: Track) -> tuple[Fate, str]:
    attempt = track.attempt
    match attempt.state:
        case State.COMMITTED:
            return Fate.SAVED, ""
        case State.ABORTED if attempt.superseded_by is not None:
            return Fate.SUPERSEDED, f"by step {attempt.superseded_by}"
        case State.ABORTED:
            return Fate.LOST, str(attempt.failure)
        case State.OPEN:
            ranks = ", ".join(map(str, attempt.unsealed_ranks()))
            return Fate.OPEN, f"rank {ranks} has not staged it"
        case State.LOCAL if attempt.members is not None:
            return Fate.DELIVERED, "the other nodes can finish it"
        case _:
            return Fate.STAGED, "the next start finishes it, if the memory stays"


def _is_newer_step(one: Track, than: Track) -> bool:
    attempt = one.attempt
    is_saved = attempt.state is State.COMMITTED and attempt.job.place == than.attempt.job.place
    return is_saved and one.staged_at > than.staged_at


def _listed(of_run: Sequence[Fated]) -> str:
    words = [
        f"step {one.step} {one.fate.value}" + f" ({one.why})" * bool(one.why) for one in of_run
    ]
    return ", ".join(words)
