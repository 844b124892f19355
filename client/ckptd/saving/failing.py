"""What a save that failed means to the training: its end, or a warning."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal

from ckptd.saving.save import Save
from ckptd_proto import errors

logger = logging.getLogger(__name__)

OnFailure = Literal["fail", "warn"] | int

TOLERABLE: Final = (
    errors.ResourceExhausted,
    errors.Unavailable,
    errors.DeadlineExceeded,
    errors.Aborted,
    errors.DataLoss,
    errors.PermissionDenied,
)
"""What the world does to a call; all else is a mistake in it, which no later save would mend."""


class SaveFailed(UserWarning):
    """A checkpoint was not saved, and the training goes on."""


class Failures:
    """Counts the saves of a run that failed one after another, and judges them."""

    def __init__(self, policy: OnFailure) -> None:
        """*policy* is "fail", "warn", or how many failures in a row are one too many.

        Raises `InvalidArgument`.
        """
        is_count = isinstance(policy, int) and not isinstance(policy, bool) and policy >= 1
        if policy not in ("fail", "warn") and not is_count:
            text = f'on_failure is {policy!r}; pass "fail", "warn" or a number from 1'
            raise errors.InvalidArgument(text)
        self._policy = policy
        self.in_a_row = 0
        """How many saves have failed since one did not."""

    def tolerates_call(self, failure: errors.CkptdError) -> bool:
        """Do as `tolerates` for what the call itself met, which may be a mistake in it."""
        return isinstance(failure, TOLERABLE) and self.tolerates(failure)

    def tolerates_alike(self, failure: errors.CkptdError, in_a_row: Iterable[int]) -> bool:
        """Do as `tolerates` for what every rank has heard, and say the same on each.

        *in_a_row* are the counts of all ranks: one may have heard of a failure before another.
        """
        self.in_a_row = max(in_a_row)
        return self.tolerates(failure)

    def tolerates(self, failure: errors.CkptdError) -> bool:
        """Count *failure*, and say whether the training goes on: then it is warned of."""
        self.in_a_row += 1
        if self._policy == "fail":
            return False
        if self._policy != "warn" and self.in_a_row >= self._policy:
            failure.add_note(f"{self.in_a_row} saves failed one after another")
            return False
        text = f"a checkpoint was not saved, the training goes on: {failure}"
        logger.warning(text)
        warnings.warn(text, SaveFailed, stacklevel=2)
        return True

    def judge(self, ended: Iterable[Save]) -> None:
        """Raise what went wrong with saves, in their order, if it is not tolerated or told already.

        The first, that is, with the others as notes.
        """
        raised = []
        for save in ended:
            if save.failure is None:
                self.in_a_row = 0
            elif (failure := save.untold_failure()) and not self.tolerates(failure):
                raised.append(failure)
        for further in raised[1:]:
            raised[0].add_note(f"besides: {further}")
        if raised:
            raise raised[0]


def told(failure: errors.CkptdError) -> dict[str, str]:
    """Return *failure* as JSON can say it, for `let_down` of the other ranks."""
    return {"error": type(failure).__name__, "message": str(failure)}


def let_down(said: Sequence[Mapping[str, Any] | None]) -> errors.CkptdError | None:
    """Return what the world did to the first rank of those that have `told` something."""
    for rank, each in enumerate(said):
        if each is not None:
            return errors.rebuilt(each["error"], f"rank {rank}: {each['message']}")
    return None


def tell_untold(place: str, saves: Iterable[Save], pid: int) -> None:
    """Log what goes wrong with *saves* into *place* if nobody has heard of it: nobody will ask.

    In process *pid*, which has made them; a child that was forked from it says nothing.
    """
    if os.getpid() == pid:
        for save in saves:
            save.when_done(partial(_tell, place, save))


def _tell(place: str, save: Save) -> None:
    if (failure := save.untold_failure()) is not None:
        logger.error(
            "step %d of %s was not saved: %s. Nobody has asked: call result() of the last save, or"
            " close() of the Checkpointer, so that the job hears of it",
            *(save.step, place, failure),
        )
