"""`ckptd ls`, `rm`, `pin`, `unpin`, `gc`: the committed checkpoints below a root."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptd.cli import json_option
from ckptd.cli.duration import Duration
from ckptd.cli.report import counted, size
from ckptd_proto import errors

if TYPE_CHECKING:
    from ckptd.saving.keeping import Address
    from ckptd.saving.retention import Retention
    from ckptd.values import Checkpoint

_paths = click.argument(
    "paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path)
)
_dry_run = click.option("--dry-run", is_flag=True, help="Remove nothing; say what would go.")


@click.command()
@click.argument("root", type=click.Path(path_type=Path), default=".")
@click.option("--experiment", metavar="E", default="", help="Only this experiment.")
@click.option("--run", metavar="R", default="", help="Only this run.")
@json_option
def ls(root: Path, experiment: str, run: str, as_json: bool) -> None:
    """List the committed checkpoints below ROOT.

    ROOT is the directory that was given to `Checkpointer`. The latest of a run is what was saved
    last, whatever its step: `load` takes it by default. One that is CORRUPT is neither latest nor
    best; `ckptd verify --repair` mends it, and a save of its step replaces it. Nor is one that is
    NEWER: a later ckptd wrote it, and only such a one reads, replaces or removes it.
    """
    from ckptd.link.connection import Connection
    from ckptd.saving.catalog import Catalog

    _check_root(root)
    for found in Catalog(Connection.open(), root.resolve(), experiment, run).committed():
        click.echo(json.dumps(_listed(found)) if as_json else _line(found))


@click.command()
@_paths
@click.option("--force", is_flag=True, help="Also the latest of its run.")
@_dry_run
@json_option
def rm(paths: tuple[Path, ...], force: bool, dry_run: bool, as_json: bool) -> None:
    """Remove the checkpoints PATH...: directories like ROOT/EXPERIMENT/RUN/step-700.

    None that is pinned or being read.
    """
    from ckptd.link.connection import Connection
    from ckptd.saving.keeping import remove

    addresses = _addresses(paths)
    for address in addresses:
        removed = remove(Connection.open(), address, dry_run=dry_run, force=force)
        words = "would remove" if dry_run else "removed"
        click.echo(
            json.dumps({"goes": True, "removed": not dry_run, **_fields(removed)})
            if as_json
            else f"{words} {removed.path} ({size(removed.size_bytes)})"
        )


@click.command()
@_paths
@json_option
def pin(paths: tuple[Path, ...], as_json: bool) -> None:
    """Have the checkpoints PATH... stay, whatever the retention of their runs says."""
    _set_pins(paths, as_json, pinned=True)


@click.command()
@_paths
@json_option
def unpin(paths: tuple[Path, ...], as_json: bool) -> None:
    """Let the checkpoints PATH... go again as the retention of their runs says."""
    _set_pins(paths, as_json, pinned=False)


@click.command()
@click.argument("root", type=click.Path(path_type=Path), default=".")
@click.option("--experiment", metavar="E", default="", help="Only this experiment.")
@click.option("--run", metavar="R", default="", help="Only this run.")
@click.option("--latest", metavar="N", type=int, default=0, help="Keep the N saved last.")
@click.option("--best", metavar="N", type=int, default=0, help="Keep the N best by --monitor.")
@click.option("--monitor", metavar="M", default="", help="The metric for --best.")
@click.option("--mode", type=click.Choice(["min", "max"]), default="min", help="What is better.")
@click.option("--every", metavar="N", type=int, default=0, help="Keep steps divisible by N.")
@click.option("--ttl", type=Duration(), default=None, help="Keep what is younger: 12h, 7d.")
@_dry_run
@json_option
def gc(root: Path, experiment: str, run: str, dry_run: bool, as_json: bool, **rules: Any) -> None:
    """Remove the checkpoints below ROOT that no rule keeps.

    The rules are those given here or, without any, those of each run (`Checkpointer(...,
    retention=...)`). The latest of a run, pinned ones and those being read always stay.
    """
    from ckptd.link.connection import Connection
    from ckptd.saving.keeping import collect

    _check_root(root)
    given = _rules(rules)
    freed, gone, stays = 0, 0, 0
    connection = Connection.open()
    found = collect(connection, root.resolve(), experiment, run, rules=given, dry_run=dry_run)
    for ruling in found:
        one = ruling.checkpoint
        gone, stays = gone + ruling.goes, stays + (not ruling.goes)
        freed += one.size_bytes if ruling.goes else 0
        if as_json:
            removed = ruling.goes and not dry_run
            fields = {"goes": ruling.goes, "removed": removed, "why": ruling.why, **_fields(one)}
            click.echo(json.dumps(fields))
        elif ruling.goes or dry_run:
            verb = "stays" if not ruling.goes else "would go" if dry_run else "removed"
            click.echo(f"{verb:<8}  {one.path}  {ruling.why}")
    if not as_json:
        words = "would remove" if dry_run else "removed"
        counts = f"{words} {counted(gone, 'checkpoint')} ({size(freed)})"
        click.echo(f"{counts}; {counted(stays, 'stays', 'stay')}")


def _set_pins(paths: tuple[Path, ...], as_json: bool, *, pinned: bool) -> None:
    from ckptd.link.connection import Connection
    from ckptd.saving.keeping import pin as set_pin

    for path, address in zip(paths, _addresses(paths), strict=True):
        changed = set_pin(Connection.open(), address, pinned=pinned)
        words = "pinned" if pinned else "unpinned" if changed else "was not pinned:"
        fields = {"path": str(path), "pinned": pinned, "changed": changed}
        click.echo(json.dumps(fields) if as_json else f"{words} {path}")


def _addresses(paths: tuple[Path, ...]) -> list[Address]:
    from ckptd.saving.keeping import Address

    return [Address.of(path) for path in paths]


def _rules(given: dict[str, Any]) -> Retention | None:
    from ckptd.saving.retention import Retention

    named = any(given[name] for name in ("latest", "best", "every", "ttl"))
    return Retention(**given) if named else None


def _check_root(root: Path) -> None:
    try:
        is_there = root.is_dir()
    except PermissionError:
        is_there = True  # the daemon may see more
    if not is_there:
        text = f"there is no directory {root.absolute()}; name the root given to `Checkpointer`"
        raise errors.NotFound(text)


def _fields(found: Checkpoint) -> dict[str, Any]:
    metrics = {
        name: value if math.isfinite(value) else str(value)  # JSON knows no others
        for name, value in found.metrics.items()
    }
    return {
        "experiment": found.experiment,
        "run": found.run,
        "step": found.step,
        "uuid": found.uuid,
        "path": str(found.path),
        "size_bytes": found.size_bytes,
        "metrics": metrics,
        "committed_at": found.committed_at,
        "pinned": found.pinned,
    }


def _listed(found: Checkpoint) -> dict[str, Any]:
    corrupt = None if found.corrupt is None else asdict(found.corrupt)
    return {**_fields(found), "latest": found.latest, "corrupt": corrupt}


def _line(found: Checkpoint) -> str:
    when = datetime.fromtimestamp(found.committed_at).isoformat(" ", "seconds")
    metrics = " ".join(f"{name}={value:g}" for name, value in sorted(found.metrics.items()))
    place = f"{found.experiment}/{found.run}"
    marks = ["latest" if found.latest else "", "pinned" if found.pinned else ""]
    if found.corrupt is not None:
        mark = "NEWER" if found.corrupt.is_newer else "CORRUPT"
        marks.append(f"{mark}: {found.corrupt.file} {found.corrupt.what}")
    parts = [place, f"step {found.step}", size(found.size_bytes), when, metrics, *marks]
    return "  ".join(part for part in parts if part)
