"""What ckptd is to reach, beside what it reached; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckptd.bench.figures import OURS, Row, Verdict
from ckptd.bench.origin import LIMIT_BYTES_S

MEMORY_BYTES = 300_000_000
REST_BYTES = 100_000_000
READY_S = 1.5
RANKS_SHARE = 1.05
ORIGIN_SHARE = 1.0
WARM_P50_MS = 1.5
WARM_P99_MS = 5.0
LIMITED_SHARE = 0.95
FULL_SHARE = 0.95
"""Of all cores: a machine that is busier has nothing left."""
CHOSEN = 1.15
"""What it may cost not to have so many streams as would be best: more than these have to bring enough
for their number, says `transfer.climb`."""
MESSAGES_PER_S = 200.0
DOWNLOADERS = ("curl", "aria2c", "hf_transfer", "rclone")
RANGES = "obstore"


@dataclass(frozen=True, slots=True)
class Speed:
    """How much of the best downloader's time is allowed, and what is aimed at."""

    at_most: float
    aim: float


PLAIN = Speed(0.5, 0.25)
TLS = Speed(0.75, 0.5)


def at_most(what: str, found: float, limit: float, unit: str = "", digits: int = 2) -> Verdict:
    """Compare a figure with what it may be at most."""
    text = f"{what} {found:.{digits}f}{unit}, to be at most {limit:.{digits}f}{unit}"
    return Verdict(text, found <= limit)


def transfer(rows: Sequence[Row], speed: Speed) -> tuple[Verdict, ...]:
    """Judge a cold fetch beside its peers; says nothing where there is nothing to compare."""
    valid = {row.name: row for row in rows if not row.problem}
    if (ours := valid.get(OURS)) is None:
        return ()
    verdicts = []
    wall_s = ours.median("wall_s")
    if rivals := [valid[name] for name in DOWNLOADERS if name in valid]:
        best = min(rivals, key=lambda row: row.median("wall_s"))
        ratio = wall_s / best.median("wall_s")
        what = f"wall, beside the best downloader ({best.name}),"
        verdicts.append(at_most(what, ratio, speed.at_most, "x"))
        verdicts.append(at_most("the same, as aimed at,", ratio, speed.aim, "x"))
    if RANGES in valid:
        ratio = wall_s / valid[RANGES].median("wall_s")
        verdicts.append(at_most(f"wall, beside {RANGES}'s ranges,", ratio, 1.0, "x"))
    if others := [row for row in valid.values() if row.name != OURS]:
        least = min(others, key=lambda row: row.median("cpu_s"))
        what, limit = f"CPU seconds, beside the least ({least.name}),", least.median("cpu_s")
        verdicts.append(at_most(what, ours.median("cpu_s"), limit))
    return (*verdicts, memory(ours))


def memory(ours: Row) -> Verdict:
    """Judge what the daemon took for itself at worst."""
    found = ours.figures["daemon_anon_bytes"].high
    return at_most("the daemon's RssAnon, at worst,", found / 1e6, MEMORY_BYTES / 1e6, " MB", 0)


def fixed(streams: int, size_bytes: int, ours: Row, native: Row | None = None) -> Verdict:
    """Judge how much of what *streams* connections might carry came, from first call to sync.

    Less is enough where the machine is full: where a *native* program that does nothing but receive
    and write takes as long with as many connections.
    """
    wall_s = ours.median("wall_s")
    share = size_bytes / wall_s / (streams * LIMIT_BYTES_S)
    text = f"with {streams} streams {share:.1%} of ({streams} x 50 MB/s)"
    if share >= LIMITED_SHARE or native is None:
        return _used_up(text, share)
    part = native.median("wall_s") / wall_s
    return _used_up(f"{text}, which is {part:.1%} of what {native.name} bring", part)


def limited(ours: Row) -> Verdict:
    """Judge how much of what its connections might carry ckptd got, from as many as it likes."""
    share, busy = ours.median("stream_share"), ours.median("busy_share")
    text = (
        f"{share:.1%} of (streams x 50 MB/s), from {ours.median('streams'):.0f} of its own choice"
    )
    if share < LIMITED_SHARE and busy >= FULL_SHARE:
        return Verdict(f"{text}; the cores were full ({busy:.0%} busy)", True)
    return _used_up(text, share)


def chosen(ours: Row, fixed: Sequence[Row]) -> Verdict:
    """Judge the number of streams that ckptd chose by what other numbers of them would have taken."""
    best = min(fixed, key=lambda row: row.median("wall_s"))
    ratio = ours.median("wall_s") / best.median("wall_s")
    return at_most(f"wall, beside the best number of streams ({best.name}),", ratio, CHOSEN, "x")


def _used_up(text: str, share: float) -> Verdict:
    return Verdict(f"{text}, to be at least {LIMITED_SHARE:.0%}", share >= LIMITED_SHARE)
