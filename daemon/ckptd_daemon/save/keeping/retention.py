"""Which checkpoints of a run stay, and why. Pure.

A rule only ever keeps: what several rules keep, each of them keeps. What no rule keeps may go, but for the newest
saved one and what is pinned, which no rule can touch; without any rule everything stays.

What is known to be bad takes nobody's place: the good ones are counted without it. It goes when it would go were it
good, so that there is time to mend it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, Self

from ckptd_daemon.save.attempts import Checkpoint
from ckptd_proto import errors

FORMAT: Final = 1
COUNT_MAX: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class Retention:
    """The rules of a run; a rule that is 0 or None keeps nothing."""

    latest: int = 0
    """That many of those saved last, whatever their numbers."""
    best: int = 0
    """That many with the best `monitor`; of equals the earlier one."""
    monitor: str = ""
    mode: Literal["min", "max"] = "min"
    every: int = 0
    """Steps divisible by it."""
    ttl_s: float | None = None
    """What is younger, in seconds since its commit."""

    def __post_init__(self) -> None:
        """Raise `InvalidArgument` for rules that cannot be meant."""
        for name in ("latest", "best", "every"):
            if not 0 <= getattr(self, name) <= COUNT_MAX:
                wrong = f"{name}={getattr(self, name)}; pass 0 to {COUNT_MAX}"
                raise errors.InvalidArgument(f"this retention has {wrong}")
        if self.best and not self.monitor:
            text = "retention by best needs `monitor`, the name of a metric; pass monitor="
            raise errors.InvalidArgument(text)
        if self.mode not in {"min", "max"}:
            text = f"retention mode {self.mode!r} is neither 'min' nor 'max'; pass one of them"
            raise errors.InvalidArgument(text)
        if self.ttl_s is not None and not (math.isfinite(self.ttl_s) and self.ttl_s > 0):
            text = f"retention ttl_s={self.ttl_s:g} is no time to live; pass seconds above 0"
            raise errors.InvalidArgument(text)

    @property
    def keeps_all(self) -> bool:
        """No rule is set."""
        return not (self.latest or self.best or self.every or self.ttl_s)

    def encode(self) -> bytes:
        """Return the rules as a file has them."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the rules of a file.

        Raises `Unimplemented` for a newer format, `ValueError` or `InvalidArgument` for no rules.
        """
        record = json.loads(data)
        try:
            if record["format"] != FORMAT:
                text = f"format {record['format']}, and this ckptd knows {FORMAT}; update it"
                raise errors.Unimplemented(f"the retention of this run is written in {text}")
            return cls(**{each.name: _checked(record, each.name) for each in fields(cls)})
        except (KeyError, TypeError) as error:
            raise ValueError(f"no retention of ckptd: {error!r}") from error


def reasons(
    found: Iterable[Checkpoint],
    rules: Retention,
    *,
    bad: Collection[int] = (),
    pinned: Collection[int] = (),
    now: float = 0.0,
) -> dict[int, str]:
    """Return why each step stays; a step of *found*, in the order they were saved, that is not in it may go.

    *bad* are the steps that are known to be. *now* is in seconds since the epoch; what was
    committed after it is young. What has a flaw stays, and counts for no rule: of it nobody
    knows what a rule asks for.
    """
    steps = list(found)
    if rules.keeps_all:
        return dict.fromkeys((one.step for one in steps), "no rule lets it go")
    in_order = [one for one in steps if one.flaw is None]
    kept = _kept([one for one in in_order if one.step not in bad], rules, now)
    if bad:
        were_they_good = _kept(in_order, rules, now)
        kept |= {step: f"{why}, but corrupt" for step, why in were_they_good.items() if step in bad}
    kept |= {one.step: f"its manifest {one.flaw.what}" for one in steps if one.flaw is not None}
    return kept | dict.fromkeys((one.step for one in steps if one.step in pinned), "pinned")


def _kept(in_order: Sequence[Checkpoint], rules: Retention, now: float) -> dict[int, str]:
    kept = dict.fromkeys(_young(in_order, rules, now), "young")
    kept |= dict.fromkeys(_divisible(in_order, rules), f"every {rules.every}")
    kept |= dict.fromkeys(best(in_order, rules, rules.best), f"best {rules.monitor}")
    newest = in_order[-rules.latest :] if rules.latest else []
    kept |= dict.fromkeys((one.step for one in newest), f"latest {rules.latest}")
    return kept | {one.step: "newest" for one in in_order[-1:]}


def best(found: Iterable[Checkpoint], rules: Retention, count: int) -> list[int]:
    """Return up to *count* steps, the best first; one without the metric, or with nan, is none."""
    sign = 1 if rules.mode == "min" else -1
    ranked = sorted(
        (sign * one.metrics[rules.monitor], one.step)
        for one in found
        if not math.isnan(one.metrics.get(rules.monitor, math.nan))
    )
    return [step for _, step in ranked[:count]]


def _young(found: Iterable[Checkpoint], rules: Retention, now: float) -> list[int]:
    ttl_s = rules.ttl_s or 0.0
    return [one.step for one in found if now - one.committed_at < ttl_s]


def _divisible(found: Iterable[Checkpoint], rules: Retention) -> list[int]:
    return [one.step for one in found if rules.every and one.step % rules.every == 0]


_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    "latest": (int,),
    "best": (int,),
    "monitor": (str,),
    "mode": (str,),
    "every": (int,),
    "ttl_s": (int, float, type(None)),
}


def _checked(record: Mapping[str, Any], name: str) -> Any:
    value = record[name]
    if not isinstance(value, _KINDS[name]) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}")
    return value
