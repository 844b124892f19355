"""The picture: a panel per case, a bar per contestant, and how far its rounds lay apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckptd.bench import machine
from ckptd.bench.figures import OURS, Outcome, Row
from ckptd.bench.machine import Machine
from ckptd.bench.report import COLUMNS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS_COLOR = "#0b7a75"
THEIRS_COLOR = "#b9c2c9"
INK = "#263238"
FAINT = "#78868f"
PANEL_WIDTH_IN = 5.6
BAR_IN = 0.34
FRAME_IN = 1.0
DOTS_PER_IN = 150
PANELS_PER_LINE = 2


def draw(path: Path, title: str, found: Machine, outcomes: Sequence[Outcome]) -> None:
    """Write the picture to *path*, in the format that its name ends in."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = [(outcome, rows) for outcome in outcomes if (rows := _rows(outcome))]
    lines = [panels[at : at + PANELS_PER_LINE] for at in range(0, len(panels), PANELS_PER_LINE)]
    heights = [FRAME_IN + BAR_IN * max(len(rows) for _, rows in line) for line in lines]
    size = PANEL_WIDTH_IN * min(PANELS_PER_LINE, len(panels)), sum(heights) + FRAME_IN
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12)
    figure = Figure(figsize=size, dpi=DOTS_PER_IN, layout=layout)
    grid = figure.add_gridspec(len(lines), len(lines[0]), height_ratios=heights)
    for at, line in enumerate(lines):
        for place, (outcome, rows) in enumerate(line):
            most = max(len(rows) for _, rows in line)
            _panel(figure.add_subplot(grid[at, place]), outcome, rows, most)
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold", color=INK)
    about = "\n".join(machine.lines(found))
    figure.supxlabel(about, x=0.01, ha="left", fontsize=7, color=FAINT)
    figure.savefig(path)


def _rows(outcome: Outcome) -> list[Row]:
    """Return the bars of a case, of a race the shortest first."""
    rows = [row for row in outcome.rows if not row.problem and outcome.headline in row.figures]
    if outcome.row(OURS) is not None:
        rows.sort(key=lambda row: row.median(outcome.headline))
    return rows


def _panel(axes: Axes, outcome: Outcome, rows: Sequence[Row], most: int) -> None:
    """Draw one case; bars are as thick as in its neighbour, which has *most* at most."""
    column = COLUMNS[outcome.headline]
    series = [row.figures[outcome.headline] for row in rows]
    medians = [one.median / column.unit for one in series]
    below = [(one.median - one.low) / column.unit for one in series]
    above = [(one.high - one.median) / column.unit for one in series]
    is_race = outcome.row(OURS) is not None
    colors = [_color(row, is_race=is_race) for row in rows]
    axes.barh(range(len(rows)), medians, color=colors, height=0.66)
    places = list(range(len(rows)))
    axes.errorbar(
        medians, places, xerr=(below, above), fmt="none", ecolor=INK, elinewidth=0.9, capsize=2.5
    )
    far = max(one.high for one in series) / column.unit
    for at, (row, one) in enumerate(zip(rows, series, strict=True)):
        ratio = outcome.ratio(row)
        text = column.text(one.median) + (f"  ({ratio:.1f}x)" if ratio and row.name != OURS else "")
        axes.text(one.high / column.unit + far * 0.02, at, text, va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.name == OURS else "normal")
    axes.set_ylim(most - 0.5, -0.5)  # the first on top
    axes.set_xlim(0, far * 1.28)
    axes.set_title(f"{outcome.case}: {outcome.title}", loc="left", fontsize=9.5, pad=8)
    axes.set_xlabel(column.heading, fontsize=8, color=FAINT)
    axes.tick_params(length=0, labelcolor=INK)
    axes.tick_params(axis="x", labelsize=8, labelcolor=FAINT)
    axes.grid(axis="x", color="#e4e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def _color(row: Row, *, is_race: bool) -> str:
    return OURS_COLOR if not is_race or row.name.startswith(OURS) else THEIRS_COLOR
