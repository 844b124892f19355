"""What is staged and cannot be written now is tried again, as its place may be well soon."""

from __future__ import annotations

import logging
import time

import anyio

from ckptd_daemon.save import threads, troubles
from ckptd_daemon.save.attempts import Attempt
from ckptd_daemon.save.places import check_same_root
from ckptd_daemon.save.track import Track
from ckptd_daemon.save.troubles import Trouble
from ckptd_proto import errors

logger = logging.getLogger(__name__)


class Retrying:
    """Says whether another try is due, and when; and what is told when none is."""

    def __init__(self, retry_s: float) -> None:
        """What a place fails with and may recover from is waited out for *retry_s*."""
        self._retry_s = retry_s

    def put_off(self, track: Track, error: Exception, failure: errors.CkptdError) -> bool:
        """Have what is staged wait for its place, if that may be well again within the time."""
        now, before = time.monotonic(), track.trouble
        trouble = Trouble(failure, now) if before is None else before.again(failure)
        left_s = trouble.limit_s(self._retry_s, is_followed=track.followers > 0)
        left_s -= now - trouble.began_at
        if not troubles.may_pass(error) or left_s <= 0 or track.doomed is not None:
            return False
        note = f"step {track.attempt.step} is staged and waits for its place: {failure}"
        if before is None:
            logger.warning("%s; it is tried again for %.0f s", note, left_s)
        track.wait_for_place(trouble, note)
        return True

    async def wait(self, track: Track, *, is_hurried: bool) -> None:
        """Wait until it is worth another try, or there is no need for one."""
        assert track.trouble is not None
        with anyio.move_on_after(track.trouble.pause_s(is_hurried=is_hurried)):
            while not track.attempt.state.is_final and track.doomed is None:
                await track.changed.wait()

    def in_the_end(self, track: Track, failure: errors.CkptdError) -> errors.CkptdError:
        """Return what those who follow are told when nothing more is tried."""
        if track.trouble is None:
            return failure
        limit = f"as long as `persist_retry_s` ({self._retry_s:g}) allows"
        return track.trouble.again(failure).ended(time.monotonic(), limit)


async def cause(track: Track, error: Exception) -> Exception:
    """Return why something is missing, if that is all *error* says: the mount was lost."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | errors.FailedPrecondition):
        return await lost_root(track) or error
    return error


async def lost_root(track: Track) -> errors.CkptdError | None:
    """Return what is wrong if the root is not what it was when the job joined."""
    job = track.attempt.job
    try:
        await threads.run(job.place.root, check_same_root, job.place.root, job.root_at)
    except errors.FailedPrecondition as failure:
        return failure
    except OSError:
        return None  # then going on will say what is wrong
    return None


def explained(error: Exception, attempt: Attempt) -> errors.CkptdError:
    """Return what went wrong to those who follow the attempt."""
    if isinstance(error, errors.CkptdError):
        return error
    if isinstance(error, OSError):
        text = f"cannot save step {attempt.step} in {attempt.job.place}: {error}"
        return errors.FailedPrecondition(f"{text}; look at that place")
    logger.error("bug while saving attempt %s", attempt.id, exc_info=error)
    return bug(error)


def bug(error: Exception) -> errors.Internal:
    """Return what a mistake of ours is to those who follow the attempt."""
    return errors.Internal(f"ckptd has a bug ({error!r}); please report the daemon's log")
