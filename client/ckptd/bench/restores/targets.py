"""What restoring is to reach, beside what it reached; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ckptd.bench.figures import OURS, Row, Verdict
from ckptd.bench.targets import at_most

DCP: Final = "dcp-load"
TORCH: Final = "torch-load"
COPY: Final = "memcpy, a thread a rank"
COPY_SHARE: Final = 0.7
DISK_SHARE: Final = 0.8


def judge(rows: Sequence[Row], bar: str, share: float) -> tuple[Verdict, ...]:
    """Judge our row beside the bar, of which it is to reach a share, and the best of torch's."""
    valid = {row.name: row for row in rows if not row.problem and row.figures}
    if (ours := valid.get(OURS)) is None:
        return ()
    verdicts: list[Verdict] = []
    if bar in valid:
        found = ours.median("bytes_per_s") / valid[bar].median("bytes_per_s")
        text = f"{found:.0%} of the bar ({bar}), to be at least {share:.0%}"
        verdicts.append(Verdict(text, found >= share))
    if theirs := [valid[name] for name in (DCP, TORCH) if name in valid]:
        best = min(theirs, key=lambda row: row.median("restored_s"))
        ratio = ours.median("restored_s") / best.median("restored_s")
        verdicts.append(at_most(f"restored, beside {best.name},", ratio, 1.0, "x"))
    return tuple(verdicts)
