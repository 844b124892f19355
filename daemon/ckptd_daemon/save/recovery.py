"""What a daemon does with the sealed slots that an earlier one left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ckptd_daemon.save import commit, manifests
from ckptd_daemon.save.arena import Slot
from ckptd_daemon.save.attempts import Attempt, Checkpoint, Image, State
from ckptd_daemon.save.headers import Header
from ckptd_daemon.save.tracks import Reservation, Track
from ckptd_proto import errors


def tracks(left: Iterable[tuple[Slot, Header]]) -> list[Track]:
    """Return the attempts that *left* belongs to, in the order they were made. Pure.

    Those of which every rank had sealed are STAGED; the others are OPEN and lost.
    """
    found: dict[str, Track] = {}
    for slot, header in left:
        track = found.setdefault(header.attempt.id, Track(_unsealed(header.attempt)))
        track.reserved[header.rank] = Reservation(slot, header.laid)
        images = tuple(laid.image for laid in header.laid)
        track.become(_sealed(track.attempt, header, images))
    return sorted(found.values(), key=lambda track: (track.attempt.job.id, track.attempt.sequence))


def outcome(attempt: Attempt) -> Checkpoint | None:
    """Return the checkpoint if the attempt was committed before its daemon died."""
    try:
        found = manifests.read(attempt.job.place, attempt.step)
    except (errors.CkptdError, OSError):
        return None  # then finishing it will say what is wrong with the place
    if found is None or found.attempt != attempt.id:
        return None
    commit.discard(attempt)  # what it replaced
    return found


def lost(attempt: Attempt) -> errors.Aborted:
    """Return why an attempt that was OPEN when its daemon died is no more."""
    ranks = ", ".join(map(str, attempt.unsealed_ranks()))
    return errors.Aborted(
        f"the daemon was restarted before rank {ranks} had staged step {attempt.step}; save again"
    )


def durable(attempt: Attempt) -> Attempt:
    """Return the staged attempt as it was just before its commit."""
    return attempt.to(State.LOCAL).to(State.DURABLE)


def _unsealed(attempt: Attempt) -> Attempt:
    return replace(attempt, plan=None, metrics={}, sealed={})


def _sealed(attempt: Attempt, header: Header, images: tuple[Image, ...]) -> Attempt:
    of_rank = header.attempt
    return attempt.with_seal(header.rank, images, plan=of_rank.plan, metrics=of_rank.metrics)
