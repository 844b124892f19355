"""What `ckptd fetch` shows while it waits: a bar for people, a line now and then for a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ckptd.cli.report import counted, of, size, span

if TYPE_CHECKING:
    from ckptd.fetching import OnProgress
    from ckptd.values import Progress

NAME_MAX = 24  # characters, so that the figures fit a line
LINE_S = 10.0  # often enough for a CI that ends what is silent, and rarely enough to read


@contextmanager
def showing(name: str, *, is_quiet: bool) -> Iterator[OnProgress | None]:
    """Show on stderr how far what is called *name* is; it gets readings inside the block."""
    if is_quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar(name) as show:
            yield show
    else:
        yield Lines(name, lambda line: click.echo(line, err=True)).show


class Lines:
    """Says a line every `LINE_S`, and none if all is done by then."""

    def __init__(
        self, name: str, say: Callable[[str], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._say = say
        self._clock = clock
        self._said_at = clock()

    def show(self, progress: Progress) -> None:
        """Take in a reading."""
        if self._clock() - self._said_at >= LINE_S:
            self._said_at = self._clock()
            self._say(f"{self._name}: {told(progress)}")


def told(progress: Progress) -> str:
    """Say how far it is, how fast, and what holds it up; the same words everywhere."""
    parts = []
    if progress.done_bytes or progress.total_bytes is not None:
        parts.append(of(progress.done_bytes, progress.total_bytes))
    if progress.phase == "downloading":
        parts.append(f"{size(round(progress.rate_bytes_per_s))}/s")
        if progress.eta_s is not None:
            parts.append(f"{span(max(1.0, progress.eta_s))} left")
        is_usual = progress.cause == "network" or not progress.reason
        parts.append(counted(progress.streams, "stream") if is_usual else progress.reason)
    else:
        parts.append(f"{progress.phase}: {progress.reason}" if progress.reason else progress.phase)
    return ", ".join(parts)


def short(ref: str) -> str:
    """Return the last part of *ref*, as much of it as fits."""
    name = ref.partition("#")[0].partition("?")[0].rstrip("/").rpartition("/")[2]
    if len(name) > NAME_MAX:
        return f"{name[: NAME_MAX // 2]}…{name[-NAME_MAX // 2 + 1 :]}"
    return name


@contextmanager
def _bar(name: str) -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    words = TextColumn("{task.fields[told]}", table_column=Column(no_wrap=True, ratio=1))
    columns = TextColumn("{task.description}"), BarColumn(12), words
    with Bars(*columns, console=Console(stderr=True), transient=True, expand=True) as bars:
        task = bars.add_task(escape(name), total=None, told="")

        def show(progress: Progress) -> None:
            bars.update(
                task,
                completed=progress.done_bytes,
                total=progress.total_bytes,
                told=escape(told(progress)),
            )

        yield show
