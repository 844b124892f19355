"""What saving is to reach, beside what it reached; pure."""

from __future__ import annotations

from collections.abc import Sequence

from ckptd.bench.figures import OURS, Row, Verdict
from ckptd.bench.targets import Speed, at_most

ASYNC = "dcp-async"
"""Whom blocked and durable are compared with."""
BLOCKED = Speed(0.33, 0.15)
DURABLE = Speed(0.25, 0.10)
SLOWER = Speed(0.25, 0.10)
BAR_SHARE = 0.8


def judge(rows: Sequence[Row], bar: str) -> tuple[Verdict, ...]:
    """Judge our row beside torch's background save and the disk's own speed, as far as they are."""
    valid = {row.name: row for row in rows if not row.problem and row.figures}
    if (ours := valid.get(OURS)) is None:
        return ()
    verdicts: list[Verdict] = []
    if (theirs := valid.get(ASYNC)) is not None:
        blocked = ours.median("blocked_ms") / theirs.median("blocked_ms")
        durable = ours.median("durable_s") / theirs.median("durable_s")
        verdicts += _both(f"the step is blocked, beside {ASYNC},", blocked, BLOCKED, "x")
        verdicts += _both(f"durable, beside {ASYNC},", durable, DURABLE, "x")
    if (disk := valid.get(bar)) is not None:
        share = ours.median("bytes_per_s") / disk.median("bytes_per_s")
        text = f"{share:.0%} of what the disk takes ({bar}), to be at least {BAR_SHARE:.0%}"
        verdicts.append(Verdict(text, share >= BAR_SHARE))
    if "slower_share" in ours.figures:
        slower = 100 * ours.median("slower_share")
        limits = Speed(100 * SLOWER.at_most, 100 * SLOWER.aim)
        verdicts += _both("steps are slower meanwhile by", slower, limits, " %")
    return tuple(verdicts)


def _both(what: str, found: float, limits: Speed, unit: str) -> list[Verdict]:
    return [
        at_most(what, found, limits.at_most, unit),
        at_most("the same, as aimed at,", found, limits.aim, unit),
    ]
