"""The cases in which many processes of the node ask ckptd for the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ckptd.bench import processes, targets
from ckptd.bench.figures import OURS, Outcome, Reading, order, percentile, row
from ckptd.bench.origin import Door
from ckptd.bench.processes import Memory
from ckptd.bench.stage import Stage
from ckptd.bench.worker import Job
from ckptd.bench.workers import Report, Worker, team, together

ONE = "1 rank"
PAUSE_S = 0.05
"""Of a rank between two warm fetches, on average: without one, the figure is how many there are."""

_versions = itertools.count()


def fresh(stage: Stage, door: Door) -> Job:
    """Return a job for the one object, in a version that the cache has not got."""
    version = f"ranks-{next(_versions)}"
    return Job(door.url, (stage.object(),), str(stage.scratch), version=version)


def cold(stage: Stage) -> Outcome:
    """All ranks ask for what the cache has not got, beside one that does."""
    counts = {ONE: 1, f"{stage.plan.ranks} ranks": stage.plan.ranks}
    readings: dict[str, list[Reading]] = {name: [] for name in counts}
    for turn in range(stage.plan.repeats + 1):
        for name in order(list(counts), turn):
            stage.say(f"ranks-cold: {'warm-up' if turn == 0 else f'round {turn}'}, {name}")
            reading = _cold(stage, counts[name])
            if turn:
                readings[name].append(reading)
    rows = tuple(row(name, found) for name, found in readings.items())
    alone, all_ = rows
    ratio = all_.median("wall_s") / alone.median("wall_s")
    sent = round(all_.figures["origin_share"].high, 2)
    verdicts = (
        targets.at_most("bytes that the origin sent, at worst,", sent, targets.ORIGIN_SHARE, "x"),
        targets.at_most(f"wall, beside {ONE},", ratio, targets.RANKS_SHARE, "x"),
    )
    title = f"{stage.plan.ranks} ranks ask for the same object, cold"
    return Outcome("ranks-cold", title, "wall_s", rows, verdicts)


def _cold(stage: Stage, count: int) -> Reading:
    """Have so many of the ranks ask; the others are there as well, so that starting them is alike."""
    job, size_bytes = fresh(stage, stage.origin.plain), stage.plan.size_bytes
    with team(OURS, stage.node.environment, stage.plan.ranks) as workers:
        mark, used_s = stage.origin.mark(), processes.cpu_s(stage.node.pid)
        reports = together(workers[:count], job)
        used_s = processes.cpu_s(stage.node.pid) - used_s
        sent = sum(request.sent_bytes for request in stage.origin.since(mark, size_bytes))
    stage.node.forget()
    return {
        "wall_s": span_s(reports),
        "cpu_s": used_s + sum(report.cpu_s for report in reports),
        "origin_share": sent / size_bytes,
    }


def warm(stage: Stage) -> Outcome:
    """All ranks ask again and again for what is there."""
    count = stage.plan.ranks
    ways = {
        ONE: (1, 0.0),
        f"{count} ranks": (count, PAUSE_S),
        f"{count} ranks, no pause": (count, 0.0),
    }
    readings: dict[str, list[Reading]] = {name: [] for name in ways}
    with cached(stage) as job, team(OURS, stage.node.environment, count) as workers:
        for turn in range(stage.plan.repeats + 1):
            for name, (asking, pause_s) in ways.items():
                stage.say(f"ranks-warm: {'warm-up' if turn == 0 else f'round {turn}'}, {name}")
                reading = hammer(stage, workers[:asking], replace(job, pause_s=pause_s))
                if turn:
                    readings[name].append(reading)
    rows = [row(name, found) for name, found in readings.items()]
    verdicts = (
        targets.at_most(
            f"{count} ranks: p50", rows[1].median("p50_ms"), targets.WARM_P50_MS, " ms"
        ),
        targets.at_most(
            f"{count} ranks: p99", rows[1].median("p99_ms"), targets.WARM_P99_MS, " ms"
        ),
    )
    title = f"{count} ranks ask for what is there"
    return Outcome("ranks-warm", title, "p50_ms", tuple(rows), verdicts)


@contextmanager
def cached(stage: Stage) -> Iterator[Job]:
    """Have the one object in the cache, and held; gives the job that asks for it often."""
    job = fresh(stage, stage.origin.plain)
    with team(OURS, stage.node.environment, 1) as holders:
        together(holders, job)
        yield replace(job, times=stage.plan.warm_fetches)
    stage.node.clear()


def hammer(stage: Stage, workers: Sequence[Worker], job: Job) -> Reading:
    """Have *workers* do *job* at once, and read how long each fetch took at the client."""
    used_s = processes.cpu_s(stage.node.pid)
    reports = together(workers, job)
    used_s = processes.cpu_s(stage.node.pid) - used_s
    return latencies(reports) | {"daemon_ms_per_fetch": used_s * 1e3 / _fetches(reports)}


def latencies(reports: Sequence[Report]) -> dict[str, float]:
    """Return what clients saw, and how many fetches a second that made."""
    took_ms = [taken * 1e3 for report in reports for taken in report.took_s]
    return {
        "p50_ms": percentile(took_ms, 0.50),
        "p99_ms": percentile(took_ms, 0.99),
        "per_s": _fetches(reports) / span_s(reports),
    }


def _fetches(reports: Sequence[Report]) -> int:
    return sum(len(report.took_s) for report in reports)


def waiters(stage: Stage) -> Outcome:
    """A crowd, in as many processes as there are ranks, waits for one flight."""
    count = stage.plan.ranks
    crowd = stage.plan.waiters // count
    counts = {"1 waiter": (1, 1), f"{crowd * count:,} waiters": (count, crowd)}
    readings: dict[str, list[Reading]] = {name: [] for name in counts}
    for turn in range(stage.plan.repeats + 1):
        for name in order(list(counts), turn):
            stage.say(f"waiters: {'warm-up' if turn == 0 else f'round {turn}'}, {name}")
            reading = _wait(stage, *counts[name])
            if turn:
                readings[name].append(reading)
    rows = tuple(row(name, found) for name, found in readings.items())
    told = rows[-1].figures["messages_per_s"].high
    verdict = targets.at_most(
        "readings of progress per second", told, targets.MESSAGES_PER_S, "", 0
    )
    ratio = rows[-1].median("wall_s") / rows[0].median("wall_s")
    note = f"the last of the crowd has its file after {ratio:.2f}x the time of one alone"
    title = f"{crowd * count:,} callers wait for one flight, 50 MB/s per connection"
    return Outcome("waiters", title, "wall_s", rows, (verdict, targets.memory(rows[-1])), (note,))


def _wait(stage: Stage, count: int, callers: int) -> Reading:
    job = replace(fresh(stage, stage.origin.limited), callers=callers)
    with team(OURS, stage.node.environment, count) as workers:
        daemon, used_s = Memory(stage.node.pid), processes.cpu_s(stage.node.pid)
        reports = together(workers, job, daemon.look)
        used_s = processes.cpu_s(stage.node.pid) - used_s
    stage.node.forget()
    wall_s = span_s(reports)
    messages = sum(report.messages for report in reports)
    return {
        "wall_s": wall_s,
        "daemon_cpu_s": used_s,
        "clients_cpu_s": sum(report.cpu_s for report in reports),
        "daemon_anon_bytes": float(daemon.peak_anon_bytes),
        "messages": float(messages),
        "messages_per_s": messages / wall_s,
    }


def span_s(reports: Sequence[Report]) -> float:
    """Return the time from the first beginning to the last end."""
    return max(one.ended_s for one in reports) - min(one.began_s for one in reports)
