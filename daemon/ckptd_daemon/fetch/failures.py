"""What has just failed: whoever asks at once gets the same answer, and the origin is left alone."""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass

from ckptd_proto import errors

logger = logging.getLogger(__name__)

REMEMBERED_MAX = 1024
# Not what the caller, the cache or its disk may have mended by the next question.
_OF_THE_ORIGIN = (
    errors.NotFound,
    errors.Unauthenticated,
    errors.PermissionDenied,
    errors.FailedPrecondition,
    errors.Unavailable,
    errors.DataLoss,
)


@dataclass(frozen=True, slots=True)
class _Failure:
    error: errors.CkptdError
    until: float  # by the monotonic clock

    def again(self, now: float) -> errors.CkptdError:
        """Return the same failure for another caller."""
        wait_s = max(1, round(self.until - now))
        text = f"{self.error}; the origin was not asked again, and is from {wait_s} s on"
        return self.error.renewed(text)


class Failures:
    """The failures of the last *failure_s* seconds, by what was asked for and by whose right."""

    def __init__(self, failure_s: float) -> None:
        self._failure_s = failure_s
        self._failures: dict[tuple[str, str], _Failure] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._failures)

    def check(self, key: str, asker: str) -> None:
        """Raise what the same asker was told about *key* a moment ago."""
        failure = self._failures.get((key, asker))
        if failure is not None and (now := time.monotonic()) < failure.until:
            raise failure.again(now)

    def note(self, key: str, asker: str, title: str, error: errors.CkptdError) -> None:
        """Give the failure its name, for all who share it and for the log; remember it."""
        if not error.id:
            error.shared_as(secrets.token_hex(4))
            logger.warning("fetching %s failed: %s", title or key, error)
        if self._failure_s == 0 or not isinstance(error, _OF_THE_ORIGIN):
            return
        now = time.monotonic()
        self._failures.pop((key, asker), None)
        self._failures[key, asker] = _Failure(error, now + self._failure_s)
        for old, failure in list(self._failures.items()):
            if failure.until > now and len(self._failures) <= REMEMBERED_MAX:
                break
            del self._failures[old]
