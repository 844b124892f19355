"""Streams and the event loop share one interpreter: what each costs the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from threading import Event

from ckptd.bench.figures import OURS, Outcome, Reading, Row, row
from ckptd.bench.origin import Door
from ckptd.bench.ranks import ONE, cached, fresh, hammer, span_s
from ckptd.bench.stage import Stage
from ckptd.bench.worker import Job
from ckptd.bench.workers import Worker, team, together


def convoy(stage: Stage) -> Outcome:
    """Fetch while the event loop is busy, and ask for what is there while a fetch streams."""
    with (
        cached(stage) as warm,
        team(OURS, stage.node.environment, 1) as (fetching,),
        team(OURS, stage.node.environment, stage.plan.ranks) as asking,
    ):
        play = _Play(stage, warm, fetching, asking)
        ways: dict[str, Callable[[], Reading]] = {
            "plain, alone": lambda: play.fetch(stage.origin.plain, busy=False),
            "plain, busy loop": lambda: play.fetch(stage.origin.plain, busy=True),
            "TLS, alone": lambda: play.fetch(stage.origin.tls, busy=False),
            "TLS, busy loop": lambda: play.fetch(stage.origin.tls, busy=True),
            f"{ONE} warm, alone": lambda: play.ask(streaming=False),
            f"{ONE} warm, beside TLS": lambda: play.ask(streaming=True),
        }
        readings: dict[str, list[Reading]] = {name: [] for name in ways}
        for turn in range(stage.plan.repeats + 1):
            for name, way in ways.items():
                stage.say(f"convoy: {'warm-up' if turn == 0 else f'round {turn}'}, {name}")
                reading = way()
                if turn:
                    readings[name].append(reading)
    rows = tuple(row(name, found) for name, found in readings.items())
    title = f"big fetches while {stage.plan.ranks} processes keep the event loop busy"
    return Outcome("convoy", title, "wall_s", rows, notes=_notes(rows))


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    plain, plain_busy, tls, tls_busy, ask, ask_beside = rows
    times = {
        "a busy loop makes a plain fetch take": (plain_busy, plain, "wall_s"),
        "a busy loop makes a TLS fetch take": (tls_busy, tls, "wall_s"),
        "a TLS fetch makes the p50 of warm ones": (ask_beside, ask, "p50_ms"),
        "a TLS fetch makes the p99 of warm ones": (ask_beside, ask, "p99_ms"),
    }
    return tuple(
        f"{what} {disturbed.median(figure) / alone.median(figure):.2f}x"
        for what, (disturbed, alone, figure) in times.items()
    )


class _Play:
    """Who fetches what is not there, and who asks for what is."""

    def __init__(self, stage: Stage, warm: Job, fetching: Worker, asking: Sequence[Worker]) -> None:
        self._stage = stage
        self._warm = warm
        self._fetching = fetching
        self._asking = asking

    def fetch(self, door: Door, *, busy: bool) -> Reading:
        """Fetch once; with *busy*, all ranks ask for what is there meanwhile."""
        with self._repeating(self._asking, lambda: self._warm) if busy else nullcontext():
            reports = together([self._fetching], fresh(self._stage, door))
        self._stage.node.forget()
        wall_s = span_s(reports)
        return {"wall_s": wall_s, "bytes_per_s": self._stage.plan.size_bytes / wall_s}

    def ask(self, *, streaming: bool) -> Reading:
        """Have one rank ask for what is there; with *streaming*, a fetch over TLS goes on."""
        big = self._repeating([self._fetching], self._next_big)
        with big if streaming else nullcontext():
            return hammer(self._stage, self._asking[:1], self._warm)

    def _next_big(self) -> Job:
        self._stage.node.forget()
        return fresh(self._stage, self._stage.origin.tls)

    @contextmanager
    def _repeating(self, workers: Sequence[Worker], job: Callable[[], Job]) -> Iterator[None]:
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
