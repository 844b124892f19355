"""Which checkpoints of a run stay: the rules, as users write them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from ckptd_proto import errors
from ckptd_proto.v1 import checkpoints_pb2 as pb

_COUNT_MAX = 1 << 31


@dataclass(frozen=True, slots=True)
class Retention:
    """What any rule keeps stays; the rest is removed after the next commit.

    The latest committed checkpoint, pinned ones and those being read stay in any case. Those that
    are known to be corrupt take no good one's place. Without a rule everything stays.
    """

    latest: int = 0
    """Keep that many of those saved last, whatever their steps: after a rollback, what came since."""
    best: int = 0
    """Keep that many with the best `monitor`; of equals the earlier one."""
    monitor: str = ""
    """The metric by which one is better than another."""
    mode: Literal["min", "max"] = "min"
    """Which values of `monitor` are better: small or large ones."""
    every: int = 0
    """Keep steps divisible by it."""
    ttl: float | timedelta | None = None
    """Keep what is younger, in seconds since its commit."""

    def __post_init__(self) -> None:
        """Raise `InvalidArgument` for rules that cannot be meant."""
        for name in ("latest", "best", "every"):
            count = getattr(self, name)
            if type(count) is not int or not 0 <= count < _COUNT_MAX:
                text = f"Retention({name}={count!r}) is no number of checkpoints; pass 0 or more"
                raise errors.InvalidArgument(text)
        if self.best and not self.monitor:
            text = 'Retention(best=...) needs a metric; pass monitor="loss", say'
            raise errors.InvalidArgument(text)
        if self.mode not in {"min", "max"}:
            text = f'Retention(mode={self.mode!r}) is unknown; pass "min" or "max"'
            raise errors.InvalidArgument(text)
        if self.ttl is not None and not 0 < self.ttl_s < float("inf"):
            text = f"Retention(ttl={self.ttl!r}) is no time to live; pass seconds above 0"
            raise errors.InvalidArgument(text)

    @property
    def ttl_s(self) -> float:
        """The time to live in seconds; 0 if there is none."""
        if isinstance(self.ttl, timedelta):
            return self.ttl.total_seconds()
        return self.ttl or 0.0

    def message(self) -> pb.Retention:
        """Return the rules as they travel."""
        return pb.Retention(
            latest=self.latest,
            best=self.best,
            monitor=self.monitor,
            maximize=self.mode == "max",
            every=self.every,
            ttl_s=self.ttl_s,
        )
