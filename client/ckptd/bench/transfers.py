"""The cases in which ckptd fetches what others fetch too."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import psutil

from ckptd.bench import node, targets
from ckptd.bench.contestants import Ckptd, Contestant, Run, checked
from ckptd.bench.figures import OURS, Outcome, Reading
from ckptd.bench.native import NO_COMPILER, natives
from ckptd.bench.origin import LIMIT_BYTES_S, Door, mean_streams
from ckptd.bench.race import race
from ckptd.bench.stage import Stage

HASHED = "ckptd, sha256"
FIXED = (4, 8, 16, 24)
"""Streams, of a ckptd that may have no fewer and no more: neither disk nor cores are full."""
MANY = (32, 48, 64)
"""The same, where they may be; and connections of a program that does nothing else."""


def plain(stage: Stage) -> Outcome:
    """One object over plain HTTP."""
    return _one(stage, "plain", stage.origin.plain, targets.PLAIN)


def tls(stage: Stage) -> Outcome:
    """One object over TLS."""
    return _one(stage, "tls", stage.origin.tls, targets.TLS)


def _one(stage: Stage, case: str, door: Door, speed: targets.Speed) -> Outcome:
    names = (stage.object(),)
    rows = race(stage, case, door, names, _contestants(stage))
    title = f"one object of {_size(stage.plan.size_bytes)}, {case.replace('tls', 'TLS')}"
    verdicts = targets.transfer(rows, speed)
    return Outcome(case, title, "wall_s", rows, verdicts, missing=stage.missing)


def limited(stage: Stage) -> Outcome:
    """One object, every connection limited to 50 MB/s."""
    names = (stage.object(),)
    size_bytes = stage.plan.size_bytes

    def watch() -> Callable[[Run], Reading]:
        mark = stage.origin.mark()
        psutil.cpu_times_percent()  # from here to the next call

        def streams(run: Run) -> Reading:
            wall_s = run.reading["wall_s"]
            spent = psutil.cpu_times_percent()
            busy = 1 - (spent.idle + spent.iowait) / 100
            found = mean_streams(stage.origin.since(mark, size_bytes), wall_s)
            share = size_bytes / wall_s / (found * LIMIT_BYTES_S)
            return {"streams": found, "stream_share": share, "busy_share": busy}

        return streams

    with tempfile.TemporaryDirectory(dir=stage.scratch) as folder, _fixed(stage) as fixed:
        bars = natives(Path(folder), MANY, size_bytes)
        contestants = [*_contestants(stage), *fixed.values(), *bars]
        rows = race(stage, "limited", stage.origin.limited, names, contestants, watch)
    title = f"one object of {_size(size_bytes)}, 50 MB/s per connection"
    missing = stage.missing if bars else (*stage.missing, NO_COMPILER)
    found = Outcome("limited", title, "wall_s", rows, missing=missing)
    if (ours := found.row(OURS)) is None:
        return found
    held = {count: row for count, one in fixed.items() if (row := found.row(one.name))}
    carried = {bar.connections: row for bar in bars if (row := found.row(bar.name))}
    verdicts = (
        targets.limited(ours),
        targets.chosen(ours, list(held.values())),
        *(targets.fixed(count, size_bytes, row, carried.get(count)) for count, row in held.items()),
        targets.memory(ours),
    )
    return replace(found, verdicts=verdicts)


@contextmanager
def _fixed(stage: Stage) -> Iterator[dict[int, Ckptd]]:
    """Run a daemon for each of `FIXED` and `MANY`; returns what takes part, by its streams."""
    with ExitStack() as stack:
        found = {}
        for count in (*FIXED, *MANY):
            settings = {"CKPTD_STREAMS": str(count), "CKPTD_STREAMS_MAX": str(count)}
            state = stack.enter_context(tempfile.TemporaryDirectory(dir=stage.scratch))
            running = stack.enter_context(node.running(Path(state), settings=settings))
            found[count] = Ckptd(running, f"{OURS}, {count} streams")
        yield found


def small(stage: Stage) -> Outcome:
    """Many small files in one go."""
    names = stage.files()
    rows = race(stage, "small", stage.origin.plain, names, _contestants(stage))
    title = f"{len(names)} files of {_size(stage.plan.file_bytes)} in one go"
    return Outcome("small", title, "wall_s", rows, missing=stage.missing)


def sha256(stage: Stage) -> Outcome:
    """One object over plain HTTP whose hash is checked."""
    names, digest = (stage.object(),), stage.sha256()
    hashed = Ckptd(stage.node, HASHED, digest)
    others = checked(stage.peers, digest)
    contestants = [Ckptd(stage.node), hashed, *others]
    rows = race(stage, "sha256", stage.origin.plain, names, contestants)
    title = f"one object of {_size(stage.plan.size_bytes)}, its SHA-256 checked"
    outcome = Outcome("sha256", title, "wall_s", rows)
    ours, costly = outcome.row(OURS), outcome.row(HASHED)
    if ours is None or costly is None:
        return outcome
    wall_s = costly.median("wall_s") - ours.median("wall_s")
    cpu_s = costly.median("cpu_s") - ours.median("cpu_s")
    note = f"an inline SHA-256 costs {wall_s:+.2f} s of wall time and {cpu_s:+.2f} CPU seconds"
    return Outcome("sha256", title, "wall_s", rows, notes=(note,))


def _contestants(stage: Stage) -> list[Contestant]:
    return [Ckptd(stage.node), *stage.peers]


def _size(count: int) -> str:
    if count >= 1 << 30:
        return f"{count / (1 << 30):.3g} GiB"
    return f"{count / 1e6:.1f} MB"
