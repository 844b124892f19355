"""The cases in which nothing is fetched: how soon a daemon is there, and what it takes at rest."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from ckptd.bench import node, processes, ranks, targets
from ckptd.bench.figures import OURS, Outcome, Reading, row
from ckptd.bench.stage import Stage
from ckptd.bench.workers import team, together


def ready(stage: Stage) -> Outcome:
    """From the start of the process to its word that it accepts calls."""
    readings: list[Reading] = []
    for turn in range(stage.plan.starts + 1):
        stage.say(f"ready: {'warm-up' if turn == 0 else f'start {turn}'}")
        with TemporaryDirectory(dir=stage.scratch) as folder, node.running(Path(folder)) as daemon:
            reading = {"wall_s": daemon.ready_s, "cpu_s": processes.cpu_s(daemon.pid)}
        if turn:
            readings.append(reading)
    rows = (row(OURS, readings),)
    verdict = targets.at_most("ready after", rows[0].median("wall_s"), targets.READY_S, " s")
    title = "a daemon starts"
    return Outcome("ready", title, "wall_s", rows, (verdict,))


def rest(stage: Stage) -> Outcome:
    """What a daemon has for itself when nobody asks anything of it."""
    found: dict[str, list[Reading]] = {"just started": [], "after a fetch": []}
    for turn in range(stage.plan.repeats):
        stage.say(f"rest: round {turn + 1}")
        with TemporaryDirectory(dir=stage.scratch) as folder, node.running(Path(folder)) as daemon:
            found["just started"].append(_anon(daemon.pid))
            with team(OURS, daemon.environment, 1) as workers:
                together(workers, ranks.fresh(stage, stage.origin.plain))
            daemon.client.status()  # it has seen the client end, or is about to
            found["after a fetch"].append(_anon(daemon.pid))
    rows = tuple(row(name, readings) for name, readings in found.items())
    what, limit = "RssAnon at rest, at worst,", targets.REST_BYTES / 1e6
    verdicts = tuple(
        targets.at_most(
            f"{one.name}: {what}", one.figures["anon_bytes"].high / 1e6, limit, " MB", 0
        )
        for one in rows
    )
    return Outcome("rest", "a daemon at rest", "anon_bytes", rows, verdicts)


def _anon(pid: int) -> Reading:
    return {"anon_bytes": float(processes.status(pid).get("RssAnon", 0))}
