"""What a place fails with and may recover from, and for how long a save waits for that. Pure.

What is staged lies whole in memory; thrown away, it is lost, for its trainers may be dead.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

from ckptd_proto import errors

FULL_S: Final = 20.0
"""For which a trainer is kept waiting at most while a disk is full: others must free it."""
_PAUSE_S: Final = 0.25
_PAUSE_MAX_S: Final = 5.0
_HASTE_MAX_S: Final = 1.0
_PASSING: Final = frozenset(
    {
        *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
        *(
            errno.ECONNABORTED,
            errno.ECONNREFUSED,
            errno.ECONNRESET,
            errno.ESHUTDOWN,
            errno.EREMOTEIO,
        ),
        *(errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.EBUSY),
    }
)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why what is staged waits for its place, and since when. By the monotonic clock."""

    failure: errors.CkptdError
    began_at: float
    tries: int = 1

    def again(self, failure: errors.CkptdError) -> Trouble:
        """Return what it is after another try has failed."""
        return Trouble(failure, self.began_at, self.tries + 1)

    def limit_s(self, retry_s: float, *, is_followed: bool) -> float:
        """Return for how long it is waited out; *is_followed* says if anybody waits for the save."""
        is_full = isinstance(self.failure, errors.ResourceExhausted)
        return min(retry_s, FULL_S) if is_full and is_followed else retry_s

    def pause_s(self, *, is_hurried: bool) -> float:
        """Return how long to wait before the next try."""
        pause_s: float = _PAUSE_S * 2 ** min(self.tries - 1, 10)
        return min(pause_s, _HASTE_MAX_S if is_hurried else _PAUSE_MAX_S)

    def ended(self, now: float, why: str) -> errors.CkptdError:
        """Return the failure of a save that is given up because of *why*, after all the tries."""
        times = "once" if self.tries == 1 else f"{self.tries} times"
        text = f"{self.failure}; tried {times} in {now - self.began_at:.0f} s, {why}"
        return self.failure.renewed(text)


def may_pass(error: BaseException | None) -> bool:
    """Say whether the place may be well again by itself, or by somebody's help; else a try is idle."""
    while error is not None:
        if isinstance(error, errors.ResourceExhausted):
            return True
        if isinstance(error, OSError) and error.errno in _PASSING:
            return True
        error = error.__cause__ if error.__cause__ is not error else None
    return False
