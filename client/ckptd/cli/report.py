"""What `ckptd status` shows to people; pure."""

from __future__ import annotations

from collections.abc import Sequence

from ckptd.values import (
    AttemptStatus,
    DaemonStatus,
    FlightStatus,
    Miss,
    PreemptionStatus,
    RunStatus,
)

_UNITS = ("B", "kB", "MB", "GB", "TB")
_RIGHT = ">"
_LEFT = "<"


def lines(status: DaemonStatus, now: float) -> list[str]:
    """Return the report; *now* is in seconds since the epoch."""
    report = _aligned([*_daemon(status), *_room(status)], _LEFT + _RIGHT + _LEFT)
    if status.flights:
        report += ["", "fetching", *_flights(status.flights)]
    if status.attempts:
        report += ["", "saving", *_saves(status.attempts)]
    if not status.flights and not status.attempts:
        report += ["", "Nothing is being fetched or saved."]
    if status.preemption is not None:
        report += ["", *_preemption(status.preemption)]
    if status.runs:
        report += ["", "saved", *_aligned(_runs(status.runs, now), _LEFT + _RIGHT, indent=2)]
    if status.misses:
        report += ["", "not prefetched", *_misses(status.misses, now)]
    return report


def _daemon(status: DaemonStatus) -> list[tuple[str, ...]]:
    kind = "private" if status.private else "service"
    mood = "busy" if status.flights or status.attempts else "idle" if status.idle else "in use"
    if status.stopping:
        mood = "draining (it takes nothing new, and ends when its work is done or its time is up)"
    processes = counted(status.sessions, "client process", "client processes")
    return [
        ("daemon", f"{mood}; ckptd {status.version}, {kind}, pid {status.pid}"),
        ("up", f"{span(status.uptime_s)}, {processes}"),
        ("socket", status.socket),
        ("state", status.state_dir),
    ]


def _room(status: DaemonStatus) -> list[tuple[str, ...]]:
    cache, arena = status.cache, status.arena
    budget = "no quota"
    if cache.quota_bytes is not None:
        budget = f"{_share(cache.used_bytes, cache.quota_bytes)} of the quota"
    blobs, leases = counted(cache.blobs, "blob"), counted(cache.leases, "lease")
    coming = sum(flight.total_bytes or 0 for flight in status.flights)
    blobs += f" and {size(coming)} on its way" if coming else ""
    slots = counted(arena.slots, "slot")
    slots += f", {arena.idle_slots} of them idle" if arena.idle_slots else ""
    return [
        (
            "cache",
            of(cache.used_bytes, cache.quota_bytes),
            f"{budget}; {blobs}, {leases}; {size(cache.free_bytes)} free on its disk",
        ),
        (
            "arena",
            of(arena.used_bytes, arena.budget_bytes),
            f"{_share(arena.used_bytes, arena.budget_bytes)} of the budget; {slots}",
        ),
    ]


def _flights(flights: Sequence[FlightStatus]) -> list[str]:
    """Return the figures of each, and below them, for it may be long, what it is and what holds it."""
    figures = _aligned(
        [_flight(flight) for flight in flights], _LEFT + _RIGHT * 4 + _LEFT, indent=2
    )
    found: list[str] = []
    for flight, line in zip(flights, figures, strict=True):
        found += [line, f"    {flight.object}"]
        found += [f"    {flight.reason}"] if flight.reason else []
    return found


def _flight(flight: FlightStatus) -> tuple[str, ...]:
    waiting = f"{flight.waiters} waiting, {counted(flight.streams, 'stream')}"
    moved = _moved(flight.done_bytes, flight.total_bytes, flight.rate_bytes_per_s)
    return (flight.phase, *moved, waiting)


def _runs(runs: Sequence[RunStatus], now: float) -> list[tuple[str, ...]]:
    """Return the newest step of each run, and how old it is: what would be lost without it."""
    return [(f"{run.experiment}/{run.run}", f"{_safe(run, now)} in {run.root}") for run in runs]


def _safe(run: RunStatus, now: float) -> str:
    if run.step is None or run.committed_at is None:
        return "none yet"
    return f"step {run.step}, {span(max(0.0, now - run.committed_at))} ago"


def _preemption(found: PreemptionStatus) -> list[str]:
    """Return how much time there is, and what became of each save so far."""
    left = f"{span(found.left_s)} left" if found.left_s > 0 else "time is over"
    what = "this node goes away" if found.takes_node else "this daemon ends"
    rows = [
        (one.fate, f"step {one.step} of {one.experiment}/{one.run} in {one.root}", one.why)
        for one in found.saves
    ]
    return [f"{what}: {left} ({found.cause})", *_aligned(rows, _LEFT * 3, indent=2)]


def _misses(misses: Sequence[Miss], now: float) -> list[str]:
    """Return what each was, how long ago, and below it why."""
    found: list[str] = []
    for miss in misses:
        age = span(max(0.0, now - miss.at))
        found += [f"  {miss.object}, {age} ago", f"    {miss.error}: {miss.sentence}"]
    return found


def _saves(attempts: Sequence[AttemptStatus]) -> list[str]:
    """Return how far each is, and below it what there is to say besides."""
    rows = [_save(attempt) for attempt in attempts]
    found: list[str] = []
    for attempt, line in zip(
        attempts, _aligned(rows, _LEFT + _RIGHT * 4 + _LEFT, indent=2), strict=True
    ):
        found += [line, f"    {attempt.note}"] if attempt.note else [line]
    return found


def _save(attempt: AttemptStatus) -> tuple[str, ...]:
    name = f"step {attempt.step} of {attempt.experiment}/{attempt.run} in {attempt.root}"
    moved = _moved(attempt.done_bytes, attempt.total_bytes, attempt.rate_bytes_per_s)
    return (attempt.state, *moved, name)


def _moved(done: int, total: int | None, rate: float) -> tuple[str, str, str, str]:
    share = "" if total is None else _share(done, total)
    if total == 0:  # nothing is known yet
        return "", "", "", ""
    left = f"{span((total - done) / rate)} left" if total is not None and rate > 0 else ""
    return of(done, total), share, f"{size(round(rate))}/s", left


def size(count: int) -> str:
    """Return *count* bytes in the unit that suits: `812 B`, `3.1 GB`."""
    value, unit = float(count), 0
    while round(value, 1) >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def of(part: int, whole: int | None) -> str:
    """Return `1.2 GB of 3.1 GB`, or the part alone."""
    return size(part) if whole is None else f"{size(part)} of {size(whole)}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else ""


def counted(count: int, one: str, many: str = "") -> str:
    """Return `1 stream`, `3 streams`."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def span(seconds: float) -> str:
    """Return *seconds* in the units that suit: `45 s`, `5 min 3 s`, `2 d 4 h`."""
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    if minutes == 0:
        return f"{int(seconds)} s"
    if hours == 0:
        return f"{minutes} min {int(seconds) % 60} s"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _aligned(rows: Sequence[tuple[str, ...]], how: str, *, indent: int = 0) -> list[str]:
    """Pad each cell to its column, as *how* says, so that the eye can run down.

    The last cell of a row is as long as it likes, and asks for no room.
    """
    widths = [
        max((len(row[at]) for row in rows if len(row) > at + 1), default=0)
        for at in range(len(how))
    ]
    padded = [
        [
            cell if at == len(row) - 1 else f"{cell:{how[at]}{widths[at]}}"
            for at, cell in enumerate(row)
            if widths[at] or at == len(row) - 1
        ]
        for row in rows
    ]
    return [" " * indent + "  ".join(row).rstrip() for row in padded]
