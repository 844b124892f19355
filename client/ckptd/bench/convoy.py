"""Streams and the event loop share one interpreter: what each costs the other.

And what each would cost the other in processes of their own, which is what a second daemon shows
that takes the questions, or the fetches, while the first has the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Final

from ckptd.bench import node
from ckptd.bench.figures import OURS, Outcome, Reading, Row, order, row
from ckptd.bench.origin import Door
from ckptd.bench.ranks import ONE, cached, fresh, hammer, span_s
from ckptd.bench.stage import Stage
from ckptd.bench.worker import Job
from ckptd.bench.workers import Worker, team, together

PLAIN: Final = "plain, alone"
PLAIN_BUSY: Final = "plain, busy loop"
PLAIN_APART: Final = "plain, another's loop busy"
TLS: Final = "TLS, alone"
TLS_BUSY: Final = "TLS, busy loop"
TLS_APART: Final = "TLS, another's loop busy"
WARM: Final = f"{ONE} warm, alone"
WARM_BESIDE: Final = f"{ONE} warm, beside TLS"
WARM_APART: Final = f"{ONE} warm, beside another's TLS"
PAUSE_S: Final = 0.005
"""Between two warm fetches, on average."""


def convoy(stage: Stage) -> Outcome:
    """Fetch while the event loop is busy, and ask for what is there while a fetch streams."""
    with ExitStack() as stack:
        apart = stack.enter_context(_another(stage))
        here, there = (stack.enter_context(_asking(one)) for one in (stage, apart))
        (fetching,) = stack.enter_context(team(OURS, stage.node.environment, 1))
        play = _Play(stage, fetching)
        tls, plain = stage.origin.tls, stage.origin.plain
        ways: dict[str, Callable[[], Reading]] = {
            PLAIN: lambda: play.fetch(plain, None),
            PLAIN_BUSY: lambda: play.fetch(plain, here),
            PLAIN_APART: lambda: play.fetch(plain, there),
            TLS: lambda: play.fetch(tls, None),
            TLS_BUSY: lambda: play.fetch(tls, here),
            TLS_APART: lambda: play.fetch(tls, there),
            WARM: lambda: here.one(),
            WARM_BESIDE: lambda: play.beside(here),
            WARM_APART: lambda: play.beside(there),
        }
        readings: dict[str, list[Reading]] = {name: [] for name in ways}
        for turn in range(stage.plan.repeats + 1):
            for name in order(list(ways), turn):
                stage.say(f"convoy: {'warm-up' if turn == 0 else f'round {turn}'}, {name}")
                reading = ways[name]()
                if turn:
                    readings[name].append(reading)
    rows = tuple(row(name, found) for name, found in readings.items())
    title = f"big fetches while {stage.plan.ranks} processes keep the event loop busy"
    return Outcome("convoy", title, "wall_s", rows, notes=_notes(rows))


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    found = {row.name: row for row in rows}

    def times(disturbed: str, alone: str, figure: str) -> str:
        return f"{found[disturbed].median(figure) / found[alone].median(figure):.2f}x"

    def both(busy: str, apart: str, alone: str, figure: str) -> str:
        at_once, in_two = times(busy, alone, figure), times(apart, alone, figure)
        return f"{at_once}, that of another daemon {in_two}"

    return (
        f"a busy loop makes a plain fetch take {both(PLAIN_BUSY, PLAIN_APART, PLAIN, 'wall_s')}",
        f"a busy loop makes a TLS fetch take {both(TLS_BUSY, TLS_APART, TLS, 'wall_s')}",
        f"a TLS fetch makes the p50 of warm ones {both(WARM_BESIDE, WARM_APART, WARM, 'p50_ms')}",
        f"a TLS fetch makes the p99 of warm ones {both(WARM_BESIDE, WARM_APART, WARM, 'p99_ms')}",
    )


@contextmanager
def _another(stage: Stage) -> Iterator[Stage]:
    """Run one more daemon: another process, with an event loop of its own."""
    with (
        TemporaryDirectory(dir=stage.scratch) as folder,
        node.running(Path(folder), stage.origin.ca_file) as daemon,
    ):
        yield replace(stage, node=daemon)


@contextmanager
def _asking(stage: Stage) -> Iterator[_Asking]:
    """Have processes that ask the stage's daemon for what it has."""
    with (
        cached(stage) as warm,
        team(OURS, stage.node.environment, stage.plan.ranks) as asking,
    ):
        yield _Asking(stage, warm, asking)


@dataclass(frozen=True, slots=True)
class _Asking:
    """Who asks for what is there."""

    stage: Stage
    warm: Job
    workers: Sequence[Worker]

    def one(self) -> Reading:
        """Have one of them ask for about a second, and see how long each fetch takes."""
        return hammer(self.stage, self.workers[:1], replace(self.warm, pause_s=PAUSE_S))


class _Play:
    """Who fetches what is not there."""

    def __init__(self, stage: Stage, fetching: Worker) -> None:
        self._stage = stage
        self._fetching = fetching

    def fetch(self, door: Door, busy: _Asking | None) -> Reading:
        """Fetch once; all that are *busy* ask for what is there meanwhile."""
        with nullcontext() if busy is None else _repeating(busy.workers, lambda: busy.warm):
            reports = together([self._fetching], fresh(self._stage, door))
        self._stage.node.forget()
        wall_s = span_s(reports)
        return {"wall_s": wall_s, "bytes_per_s": self._stage.plan.size_bytes / wall_s}

    def beside(self, asking: _Asking) -> Reading:
        """Have one ask for what is there while a fetch over TLS goes on."""
        with _repeating([self._fetching], self._next_big):
            self._stage.node.await_bytes()
            return asking.one()

    def _next_big(self) -> Job:
        self._stage.node.forget()
        return fresh(self._stage, self._stage.origin.tls)


@contextmanager
def _repeating(workers: Sequence[Worker], job: Callable[[], Job]) -> Iterator[None]:
    """Have *workers* do their jobs again and again for as long as the block lasts."""
    over = Event()

    def repeat(worker: Worker) -> None:
        while not over.is_set():
            together([worker], job())

    with ThreadPoolExecutor(len(workers)) as pool:
        repeating = [pool.submit(repeat, worker) for worker in workers]
        try:
            yield
        finally:
            over.set()
        for one in repeating:
            one.result()
