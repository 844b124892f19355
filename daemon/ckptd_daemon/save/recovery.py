"""What a daemon does with the sealed slots that an earlier one left."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ckptd_daemon.save import threads
from ckptd_daemon.save.arena.headers import Header
from ckptd_daemon.save.arena.uses import Slot
from ckptd_daemon.save.attempts import Attempt, Checkpoint, Image, JobKey, State
from ckptd_daemon.save.commit import commit, manifests
from ckptd_daemon.save.finisher import Finisher
from ckptd_daemon.save.nodes.ground import is_going, note_of, refresh
from ckptd_daemon.save.places import Place, check_no_links, check_user_below
from ckptd_daemon.save.track import Progress, Reservation, Track
from ckptd_daemon.save.tracks import Tracks
from ckptd_proto import errors

logger = logging.getLogger(__name__)


def by_place(left: Iterable[tuple[Slot, Header]]) -> dict[Place, list[Track]]:
    """Return the attempts that *left* belongs to, by their runs. Pure."""
    found: dict[Place, list[Track]] = {}
    for track in tracks(left):
        found.setdefault(track.attempt.job.place, []).append(track)
    return found


async def take_up(
    place: Place,
    found: Sequence[Track],
    in_hand: Tracks,
    finisher: Finisher,
    allowed: tuple[Path, ...],
) -> None:
    """Finish what was staged in the run, abort what was not.

    Nothing is done where the user who saves may not have this daemon work, at least not now: other
    users may below the roots that are *allowed*.
    """
    refused: dict[JobKey, errors.CkptdError | None] = {}
    try:
        for job in dict.fromkeys(track.attempt.job for track in found):
            refused[job] = await threads.run(place.root, _refusal, job, allowed)
        if None in refused.values():
            await threads.run(place.root, _put_back, place)
        for track in found:
            if (refusal := refused[track.attempt.job]) is None:
                await _take_up(track, in_hand, finisher)
            else:
                logger.error("step %s in %s is given up: %s", track.attempt.step, place, refusal)
                in_hand.end(track, refusal)
    except Exception:
        logger.exception("bug while what was staged in %s was taken up", place)


async def _take_up(track: Track, in_hand: Tracks, finisher: Finisher) -> None:
    attempt, root = track.attempt, track.attempt.job.place.root
    if attempt.state is State.OPEN and attempt.members is not None:
        in_hand.abort(track, lost(attempt))
    elif attempt.members is not None:
        finisher.finish(track)
    elif checkpoint := await threads.run(root, outcome, attempt):
        track.become(replace(attempt, state=State.DURABLE))  # of all ranks, or of those left
        in_hand.commit(track, checkpoint)
    elif attempt.state is State.OPEN:
        await threads.run(root, commit.discard, attempt)
        in_hand.abort(track, lost(attempt))
    else:
        finisher.finish(track)


def _refusal(job: JobKey, allowed: tuple[Path, ...]) -> errors.CkptdError | None:
    """Return why its user may not save there; None if he may, or nobody can look now."""
    try:
        check_user_below(job.place.root, job.uid, allowed)
        check_no_links(job.place, job.uid)
    except errors.CkptdError as refusal:
        return refusal
    except OSError as error:
        logger.warning("cannot look at %s: %s", job.place, error)
    return None


def _put_back(place: Place) -> None:
    """Put steps back; where that fails now, it is done when the next rank joins."""
    try:
        commit.put_back(place, ())
    except OSError as error:
        logger.warning("cannot look for steps to put back in %s: %s", place, error)


def tracks(left: Iterable[tuple[Slot, Header]]) -> list[Track]:
    """Return the attempts that *left* belongs to, in the order they were made. Pure.

    Those of which every rank had sealed are STAGED; the others are OPEN and lost.
    """
    found: dict[str, Track] = {}
    for slot, header in left:
        track = found.setdefault(header.attempt.id, Track(_unsealed(header.attempt), is_left=True))
        if header.rank in track.reserved:
            continue  # never made by us
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


def _unsealed(attempt: Attempt) -> Attempt:
    return replace(attempt, plan=None, metrics={}, sealed={})


def _sealed(attempt: Attempt, header: Header, images: tuple[Image, ...]) -> Attempt:
    of_rank = header.attempt
    return attempt.with_seal(header.rank, images, plan=of_rank.plan, metrics=of_rank.metrics)


def _step_of(attempt: Attempt) -> Checkpoint | None:
    """Return the step if it is the attempt's work, and not by what this node remembers of names."""
    place = attempt.job.place
    refresh(place.attempts)
    refresh(place.directory)
    try:
        found = manifests.read(place, attempt.step)
    except errors.AlreadyExists:
        return None
    return found if found is not None and found.attempt == attempt.id else None


def past(place: Place, attempt_id: str, step: int) -> Progress:
    """Return the outcome of an attempt that this daemon has never met, or has forgotten."""
    nobody = JobKey("", place, "", 1, 0)
    attempt = Attempt(attempt_id, nobody, 0, step, "", replaces=False)
    found = _step_of(attempt)
    if found is None:
        if is_going(place, attempt_id):
            return Progress(attempt, 0, 0)
        found = _step_of(attempt)  # it may have become that just now
    if found is None and (noted := note_of(place, attempt_id)) is not None:
        if isinstance(noted, errors.CkptdError):
            return Progress(replace(attempt, state=State.ABORTED, failure=noted), 0, 0)
        found = noted
    if found is not None:
        size = found.size_bytes
        return Progress(replace(attempt, state=State.COMMITTED, checkpoint=found), size, size)
    failure = errors.Aborted(
        f"the daemon knows no attempt {attempt_id}, and {place.step(step)} is not its work: it was "
        f"lost before it was staged; save again"
    )
    return Progress(replace(attempt, state=State.ABORTED, failure=failure), 0, 0)
