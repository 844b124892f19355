"""`ckptd demo`."""

from __future__ import annotations

import json
import secrets
import statistics
from typing import TYPE_CHECKING

import click

from ckptd import errors
from ckptd.cli import json_option

if TYPE_CHECKING:
    from rich.table import Table

    from ckptd.demo.story import Outcome


@click.command()
@click.option("--seed", type=int, help="Repeat the demo that printed this seed.")
@json_option
def demo(seed: int | None, as_json: bool) -> None:
    """Fetch a real model, train, be killed, resume.

    The bits at the end are those of a run that was never killed.

    Takes a minute or two; everything happens in a folder of its own that is gone afterwards.
    """
    from ckptd.demo import story

    def say(line: str) -> None:
        click.echo(line, err=as_json)

    outcome = story.play(secrets.randbelow(1 << 31) if seed is None else seed, say)
    if as_json:
        click.echo(json.dumps(outcome.as_json()))
    else:
        from rich.console import Console

        Console().print(_table(outcome))
    if not outcome.is_identical:
        text = (
            f"the resumed run ended with parameters {outcome.sha256[:12]}, the uninterrupted one "
            f"with {outcome.sha256_uninterrupted[:12]}; please report seed {outcome.seed}"
        )
        raise errors.Internal(text)


def _table(outcome: Outcome) -> Table:
    """Return what was measured, for someone who sees ckptd for the first time."""
    from rich.table import Table

    blocked = outcome.save_blocked_ms
    lost = outcome.killed_at_step - outcome.resumed_from_step
    same = "yes, bit for bit" if outcome.is_identical else "NO"
    table = Table(title="ckptd demo", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row(
        "the ranks asked for",
        f"{outcome.asked_bytes / 1e6:,.1f} MB ({outcome.fetches} fetches of "
        f"{outcome.model_bytes / 1e6:.1f} MB)",
    )
    table.add_row("the origin sent", f"{outcome.origin_sent_bytes / 1e6:,.1f} MB")
    table.add_row(
        "a save blocked training for",
        f"{statistics.median(blocked):.0f} ms (median), {max(blocked):.0f} ms (worst of "
        f"{len(blocked)})",
    )
    table.add_row(
        "all ranks killed in", f"step {outcome.killed_at_step} of {outcome.steps} (SIGKILL)"
    )
    table.add_row(
        "steps recovered",
        f"{outcome.resumed_from_step} ({lost} trained again)",
    )
    table.add_row("same result as never killed", f"{same} (sha256 {outcome.sha256[:12]}…)")
    table.add_row("digits read rightly", f"{outcome.accuracy:.1%}, never seen in training")
    table.add_row("to repeat it", f"ckptd demo --seed {outcome.seed}")
    return table
