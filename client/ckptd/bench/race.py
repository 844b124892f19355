"""Contestants take turns at the same job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ckptd.bench.contestants import Contestant, Run
from ckptd.bench.figures import Reading, Row, order, row
from ckptd.bench.origin import Door
from ckptd.bench.processes import FailedError
from ckptd.bench.stage import Stage

_COMPARE_BYTES = 8 << 20

Watch = Callable[[], Callable[[Run], Reading]]
"""Called before a run; what it returns is called after it, for more figures."""


def race(
    stage: Stage,
    case: str,
    door: Door,
    names: tuple[str, ...],
    contestants: Sequence[Contestant],
    watch: Watch = lambda: lambda run: {},
) -> tuple[Row, ...]:
    """Return a row for each contestant, over the rounds after the first.

    Everybody's bytes are compared with the source in the first round, and only their sizes
    later: reading them back would disturb whoever comes next. One that fails, or is wrong, takes
    no further part, and its row says so.
    """
    readings: dict[str, list[Reading]] = {one.name: [] for one in contestants}
    out: dict[str, Row] = {}
    for turn in range(stage.plan.repeats + 1):
        for one in order(contestants, turn):
            if one.name in out:
                continue
            stage.say(f"{case}: {'warm-up' if turn == 0 else f'round {turn}'}, {one.name}")
            try:
                with stage.job(door, names) as job:
                    seen = watch()
                    with one.fetched(job) as run:
                        figures = {**run.reading, **seen(run)}
                        difference = _difference(stage.origin.files, run.paths, in_full=turn == 0)
            except FailedError as error:
                out[one.name] = Row(one.name, {}, str(error))
                continue
            if difference:
                out[one.name] = Row(one.name, {}, difference, is_wrong=True)
            elif turn:
                readings[one.name].append(figures)
    return tuple(out.get(one.name) or row(one.name, readings[one.name]) for one in contestants)


def _difference(source: Path, paths: Mapping[str, Path], *, in_full: bool) -> str:
    """Say how the results differ from the source; nothing if they do not."""
    for name, path in paths.items():
        expected = (source / name).stat().st_size
        if not path.exists() or (found := path.stat().st_size) != expected:
            had = f"{found} bytes" if path.exists() else "no file"
            return f"{name}: {had} instead of {expected} bytes"
        if in_full and not same(source / name, path):
            return f"{name}: other bytes than the source has"
    return ""


def same(one: Path, other: Path) -> bool:
    """Say whether two files hold the same bytes."""
    ours, theirs = bytearray(_COMPARE_BYTES), bytearray(_COMPARE_BYTES)
    with one.open("rb", buffering=0) as left, other.open("rb", buffering=0) as right:
        while count := left.readinto(ours):
            if right.readinto(theirs) != count or ours[:count] != theirs[:count]:
                return False
        return not right.readinto(theirs)
