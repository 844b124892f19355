"""`ckptd bench`."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptd.cli import json_option
from ckptd_proto import errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ckptd.bench.figures import Outcome
    from ckptd.bench.machine import Machine

_CASES = (
    *("plain", "tls", "limited", "small", "sha256", "ranks-cold", "ranks-warm", "waiters"),
    *("ready", "rest", "convoy"),
)
_PEERS = ("curl", "aria2c", "rclone", "hf_transfer", "obstore")
_SAVE_CASES = ("steps", "loader", "quiet")
_RESTORE_CASES = ("memory", "cold", "warm", "reshard")
_LOADS = ("dcp-load", "torch-load")
_WAYS = ("dcp-async", "dcp-async-kept", "dcp-process", "dcp-process-kept", "dcp-save", "torch-save")

_directory_option = click.option(
    "--directory", type=click.Path(file_okay=False, exists=True, path_type=Path), default=".",
    show_default="here", help="On the disk to be measured.",
)  # fmt: skip
_output_option = click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
    help="Draw a picture here: .png or .svg.",
)  # fmt: skip
_markdown_option = click.option(
    "--markdown", is_flag=True, help="Print Markdown, to be pasted into a document."
)


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
@_directory_option
@click.option("--peers", metavar="NAME,…", help=f"Of {','.join(_PEERS)}; all by default, or none.")
@_output_option
@_markdown_option
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
    from ckptd.bench import contestants, machine
    from ckptd.bench.stage import Plan, stage

    _check_form(output, markdown=markdown, as_json=as_json)
    chosen, missing = contestants.peers(_chosen(peers, _PEERS))
    plan = Plan(size_bytes=int(gib * (1 << 30)), repeats=repeats)
    found = machine.describe(directory, [(one.name, one.version) for one in chosen])
    with stage(directory, plan, chosen, missing, _say) as here:
        found.versions["nginx"] = here.origin.version
        outcomes = played.play(here, cases)
    _tell("ckptd bench fetch", found, outcomes, output, markdown=markdown, as_json=as_json)


@bench.command()
@click.option(
    "--case", "cases", type=click.Choice(_SAVE_CASES), multiple=True,
    help="Only this; may be repeated.",
)  # fmt: skip
@click.option(
    "--mib", type=click.IntRange(min=1), default=1024, show_default=True,
    help="Size of the state of a rank.",
)  # fmt: skip
@click.option("--ranks", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=3, show_default=True,
    help="Rounds, after one that does not count.",
)  # fmt: skip
@_directory_option
@click.option("--peers", metavar="NAME,…", help=f"Of {','.join(_WAYS)}; all by default, or none.")
@_output_option
@_markdown_option
@json_option
def save(
    cases: tuple[str, ...],
    mib: int,
    ranks: int,
    repeats: int,
    directory: Path,
    peers: str | None,
    output: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """Race ckptd against torch.save and torch.distributed.checkpoint, while ranks train.

    Each takes turns with a job of its own; what it saved is synced to the disk, and read back by
    torch alone. Needs torch; the daemon that is measured is one of its own.
    """
    from ckptd.bench import machine

    _check_form(output, markdown=markdown, as_json=as_json)
    _require_torch()
    from ckptd.bench.saves import cases as played
    from ckptd.bench.saves.stage import Plan, stage

    chosen = _chosen(peers, _WAYS)
    plan = Plan(ranks=ranks, rank_bytes=mib << 20, repeats=repeats)
    with stage(directory, plan, chosen, _say) as here:
        found = machine.describe(directory, [("torch", version("torch")), *here.bar.versions])
        outcomes = played.play(here, cases)
    _tell("ckptd bench save", found, outcomes, output, markdown=markdown, as_json=as_json)


@bench.command()
@click.option(
    "--case", "cases", type=click.Choice(_RESTORE_CASES), multiple=True,
    help="Only this; may be repeated.",
)  # fmt: skip
@click.option(
    "--mib", type=click.IntRange(min=1), default=1024, show_default=True,
    help="Size of the state of a rank.",
)  # fmt: skip
@click.option("--ranks", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=3, show_default=True,
    help="Rounds, after one that does not count.",
)  # fmt: skip
@_directory_option
@click.option("--peers", metavar="NAME,…", help=f"Of {','.join(_LOADS)}; all by default, or none.")
@_output_option
@_markdown_option
@json_option
def restore(
    cases: tuple[str, ...],
    mib: int,
    ranks: int,
    repeats: int,
    directory: Path,
    peers: str | None,
    output: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """Race ckptd against torch.load and torch.distributed.checkpoint, from memory and disk.

    Each takes turns with a job of its own, and loads what it has saved itself. Needs torch; the
    daemons that are measured are two of its own.
    """
    from ckptd.bench import machine

    _check_form(output, markdown=markdown, as_json=as_json)
    _require_torch()
    from ckptd.bench.restores import cases as played
    from ckptd.bench.restores.stage import Plan, stage

    chosen = _chosen(peers, _LOADS)
    plan = Plan(ranks=ranks, rank_bytes=mib << 20, repeats=repeats)
    with stage(directory, plan, chosen, _say) as here:
        found = machine.describe(directory, [("torch", version("torch")), *here.bar.versions])
        outcomes = played.play(here, cases)
    _tell("ckptd bench restore", found, outcomes, output, markdown=markdown, as_json=as_json)


def _tell(
    title: str,
    found: Machine,
    outcomes: Sequence[Outcome],
    output: Path | None,
    *,
    markdown: bool,
    as_json: bool,
) -> None:
    """Print and draw what was found; fail if somebody delivered wrong bytes."""
    from ckptd.bench import plot, report

    if output is not None:
        plot.draw(output, title, found, outcomes)
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


def _chosen(peers: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    if peers is None:
        return known
    names = tuple(name for name in peers.split(",") if name and name != "none")
    if unknown := [name for name in names if name not in known]:
        text = f"there is no peer {unknown[0]!r}; choose of {', '.join(known)}, or none"
        raise errors.InvalidArgument(text)
    return names


def _require_torch() -> None:
    if find_spec("torch") is None:
        raise errors.FailedPrecondition("saving needs torch: pip install 'ckptd[torch]'")


def _check_form(output: Path | None, *, markdown: bool, as_json: bool) -> None:
    if as_json and markdown:
        raise errors.InvalidArgument("--json and --markdown exclude each other; choose one")
    if output is not None:
        _require_drawing(output)


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
