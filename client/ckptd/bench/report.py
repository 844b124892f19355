"""What people read: a table per case, its targets, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ckptd.bench import machine
from ckptd.bench.figures import OURS, Outcome, Row, Verdict
from ckptd.bench.machine import Machine

if TYPE_CHECKING:
    from rich.console import Console

FORMAT = 1
WIDTH = 100
"""Of a line, in characters."""


@dataclass(frozen=True, slots=True)
class Column:
    """How a figure is shown."""

    heading: str
    unit: float = 1.0
    """Of what is shown, in what is measured."""
    digits: int = 2

    def text(self, value: float) -> str:
        """Return *value* in the unit of the column."""
        return f"{value / self.unit:,.{self.digits}f}"


COLUMNS: Mapping[str, Column] = {
    "wall_s": Column("wall, s"),
    "durable_s": Column("durable, s"),
    "restored_s": Column("restored, s"),
    "bytes_per_s": Column("GB/s", 1e9),
    "blocked_ms": Column("blocked, ms", digits=0),
    "slower_share": Column("slower, %", 0.01, 0),
    "cpu_s": Column("CPU, s"),
    "daemon_cpu_s": Column("daemon CPU, s"),
    "clients_cpu_s": Column("clients CPU, s"),
    "extra_bytes": Column("RAM, +MB", 1e6, 0),
    "peak_bytes": Column("RAM, MB", 1e6, 0),
    "anon_bytes": Column("RssAnon, MB", 1e6, 0),
    "streams": Column("streams", digits=1),
    "stream_share": Column("of limit, %", 0.01, 1),
    "busy_share": Column("cores, %", 0.01, 0),
    "origin_share": Column("origin bytes, x", digits=3),
    "p50_ms": Column("p50, ms"),
    "p99_ms": Column("p99, ms"),
    "per_s": Column("fetches/s", digits=0),
    "daemon_ms_per_fetch": Column("CPU/fetch, ms"),
    "messages": Column("messages", digits=0),
    "messages_per_s": Column("messages/s", digits=0),
}
"""What tables show, in this order; other figures are in the JSON."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table as text: the first column is the contestant."""

    headings: list[str]
    rows: list[list[str]]
    problems: list[tuple[str, str]]
    """Contestants whose figures do not count, and why."""


def grid(outcome: Outcome) -> Grid:
    """Lay out the figures of a case, the fastest first if it is a race."""
    counted = [row for row in outcome.rows if not row.problem]
    is_race = outcome.row(OURS) is not None and len(counted) > 1
    if is_race:
        counted.sort(key=lambda row: row.median(outcome.headline))
    head = COLUMNS[outcome.headline]
    shown = {name for row in counted for name in row.figures} - {outcome.headline}
    others = [name for name in COLUMNS if name in shown]
    headings = ["", head.heading, "min to max", *([f"x {OURS}"] if is_race else [])]
    headings += [COLUMNS[name].heading for name in others]
    rows = []
    for row in counted:
        cells = [row.name, _median(row, outcome.headline), _spread(row, outcome.headline)]
        if is_race:
            cells.append(f"{outcome.ratio(row):.2f}")
        rows.append([*cells, *(_median(row, name) for name in others)])
    return Grid(headings, rows, [(row.name, row.problem) for row in outcome.rows if row.problem])


def _median(row: Row, name: str) -> str:
    return COLUMNS[name].text(row.median(name)) if name in row.figures else ""


def _spread(row: Row, name: str) -> str:
    if name not in row.figures:
        return ""
    series, column = row.figures[name], COLUMNS[name]
    return f"{column.text(series.low)} to {column.text(series.high)}"


def verdict(found: Verdict) -> str:
    """Say whether a target was met, as plainly one way as the other."""
    return f"{'met' if found.is_met else 'MISSED':6} {found.text}"


def show(console: Console, found: Machine, outcomes: Sequence[Outcome]) -> None:
    """Print everything for people."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    for line in machine.lines(found):
        console.print(line, style="dim", highlight=False, markup=False)
    for outcome in outcomes:
        laid = grid(outcome)
        title = f"{outcome.case}: {outcome.title}"
        table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
        for index, heading in enumerate(laid.headings):
            table.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
        for cells in laid.rows:
            table.add_row(*map(escape, cells), style="bold" if cells[0] == OURS else "")
        console.print(table)
        for found_verdict in outcome.verdicts:
            style = "green" if found_verdict.is_met else "bold red"
            console.print(f"  {verdict(found_verdict)}", style=style, highlight=False, markup=False)
        for line in _remarks(outcome, laid):
            console.print(f"  {line}", highlight=False, markup=False)


def _remarks(outcome: Outcome, laid: Grid) -> list[str]:
    failed = [f"{name} does not count: {problem}" for name, problem in laid.problems]
    return [*failed, *outcome.notes, *outcome.missing]


def markdown(found: Machine, outcomes: Sequence[Outcome]) -> str:
    """Return everything as Markdown, to be pasted into a document."""
    said = [*(f"{line}  " for line in machine.lines(found)), ""]
    for outcome in outcomes:
        laid = grid(outcome)
        said += [f"### `{outcome.case}`: {outcome.title}", ""]
        said.append(_line([*laid.headings]))
        said.append(_line(["---", *("---:" for _ in laid.headings[1:])]))
        for cells in laid.rows:
            bold = [f"**{cell}**" for cell in cells[:2]] if cells[0] == OURS else cells[:2]
            said.append(_line([*bold, *cells[2:]]))
        said.append("")
        for one in outcome.verdicts:
            said.append(f"- **{'met' if one.is_met else 'missed'}**: {one.text}")
        said += [f"- {line}" for line in _remarks(outcome, laid)]
        if said[-1]:
            said.append("")
    return "\n".join(said)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def as_json(found: Machine, outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Return everything for programs."""
    return {
        "format": FORMAT,
        "machine": asdict(found),
        "cases": [_case(outcome) for outcome in outcomes],
    }


def _case(outcome: Outcome) -> dict[str, object]:
    rows = [
        {
            "name": row.name,
            "problem": row.problem or None,
            "ratio": outcome.ratio(row),
            "figures": {
                name: {
                    "median": series.median,
                    "min": series.low,
                    "max": series.high,
                    "values": list(series.values),
                }
                for name, series in row.figures.items()
            },
        }
        for row in outcome.rows
    ]
    return {
        "case": outcome.case,
        "title": outcome.title,
        "headline": outcome.headline,
        "contestants": rows,
        "targets": [{"text": one.text, "is_met": one.is_met} for one in outcome.verdicts],
        "notes": list(outcome.notes),
        "missing": list(outcome.missing),
    }
