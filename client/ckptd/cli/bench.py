"""`ckptd bench`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptd.cli import json_option
from ckptd_proto import errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ckptd.bench.figures import Outcome

_CASES = (
    *("plain", "tls", "limited", "small", "sha256", "ranks-cold", "ranks-warm", "waiters"),
    *("ready", "rest", "convoy"),
)
_PEERS = ("curl", "aria2c", "rclone", "hf_transfer", "obstore")


@click.group()
def bench() -> None:
    """Measure ckptd beside its peers, on this machine."""


@bench.command()
@click.option(
    "--case", "cases", type=click.Choice(_CASES), multiple=True, help="Only this; may be repeated."
)
@click.option(
    "--gib", type=click.FloatRange(min=0, min_open=True), default=2.0, show_default=True,
    help="Size of the one object.",
)  # fmt: skip
@click.option(
    "--repeats", type=click.IntRange(min=1), default=5, show_default=True,
    help="Rounds, after one that does not count.",
)  # fmt: skip
@click.option(
    "--directory", type=click.Path(file_okay=False, exists=True, path_type=Path), default=".",
    show_default="here", help="On the disk to be measured.",
)  # fmt: skip
@click.option("--peers", metavar="NAME,…", help=f"Of {','.join(_PEERS)}; all by default, or none.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
    help="Draw a picture here: .png or .svg.",
)  # fmt: skip
@click.option("--markdown", is_flag=True, help="Print Markdown, to be pasted into a document.")
@json_option
def fetch(
    cases: tuple[str, ...],
    gib: float,
    repeats: int,
    directory: Path,
    peers: str | None,
    output: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """Race ckptd against curl, aria2c, rclone, hf_transfer and obstore from a local nginx.

    Those that are installed take turns; every result is synced to the disk and compared with the
    source. Needs nginx and openssl; the daemon that is measured is one of its own.
    """
    from ckptd.bench import cases as played
    from ckptd.bench import contestants, machine, plot, report
    from ckptd.bench.stage import Plan, stage

    if as_json and markdown:
        raise errors.InvalidArgument("--json and --markdown exclude each other; choose one")
    if output is not None:
        _require_drawing(output)
    chosen, missing = contestants.peers(_chosen(peers))
    plan = Plan(size_bytes=int(gib * (1 << 30)), repeats=repeats)
    found = machine.describe(directory, [(one.name, one.version) for one in chosen])
    with stage(directory, plan, chosen, missing, _say) as here:
        found.versions["nginx"] = here.origin.version
        outcomes = played.play(here, cases)
    if output is not None:
        plot.draw(output, found, outcomes)
    if as_json:
        click.echo(json.dumps(report.as_json(found, outcomes)))
    elif markdown:
        click.echo(report.markdown(found, outcomes))
    else:
        from rich.console import Console

        console = Console()
        console.width = min(console.width, report.WIDTH) if console.is_terminal else report.WIDTH
        report.show(console, found, outcomes)
    _require_right(outcomes)


def _chosen(peers: str | None) -> tuple[str, ...]:
    if peers is None:
        return _PEERS
    names = tuple(name for name in peers.split(",") if name and name != "none")
    if unknown := [name for name in names if name not in _PEERS]:
        text = f"there is no peer {unknown[0]!r}; choose of {', '.join(_PEERS)}, or none"
        raise errors.InvalidArgument(text)
    return names


def _require_drawing(output: Path) -> None:
    """Find out before the long way, not after."""
    if not output.absolute().parent.is_dir():
        raise errors.FailedPrecondition(f"there is no directory for {output}; create it first")
    if output.suffix not in {".png", ".svg", ".pdf"}:
        raise errors.InvalidArgument(f"{output} ends in none of .png, .svg and .pdf")
    try:
        import matplotlib  # noqa: F401  only whether it is there
    except ImportError as error:
        text = "a picture needs matplotlib: pip install 'ckptd[bench]', or leave -o out"
        raise errors.FailedPrecondition(text) from error


def _say(line: str) -> None:
    """Tell people how far it is, where they may look."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{line}", err=True, nl=False)
    else:
        click.echo(line, err=True)


def _require_right(outcomes: Sequence[Outcome]) -> None:
    """Fail if somebody delivered wrong bytes, or ckptd nothing."""
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", err=True, nl=False)
    for outcome in outcomes:
        for row in outcome.rows:
            if row.is_wrong:
                raise errors.DataLoss(f"{outcome.case}: {row.name} delivered {row.problem}")
            if row.problem and row.name.startswith("ckptd"):
                raise errors.Internal(f"{outcome.case}: {row.name} failed: {row.problem}")
